//! Where the windows of a convolution or a pooling lie on a picture.

/// Size, steps and edges of windows. Rows come first, then columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Taps of one window.
    pub kernel: [usize; 2],
    /// From one window to the next.
    pub stride: [usize; 2],
    /// From one tap to the next.
    pub dilation: [usize; 2],
    /// Rows above, columns to the left, rows below, columns to the right that are taken to be 0.
    pub pads: [usize; 4],
}

/// Why there is no such window.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WindowError {
    /// A size or a step is 0.
    #[error("a window has a kernel, stride or dilation of 0: {0:?}")]
    Zero(Window),
    /// A size is beyond what anybody uses, so that products of sizes could overflow.
    #[error("a window is larger than 65,535 somewhere: {0:?}")]
    Large(Window),
    /// Not one window fits.
    #[error("a picture of {h} × {w} has no room for {window:?}")]
    NoRoom {
        /// What does not fit.
        window: Window,
        /// Rows of the picture.
        h: usize,
        /// Its columns.
        w: usize,
    },
}

impl Window {
    /// A square of `kernel` taps a side with `pad` on all sides.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Window {
        Window {
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pads: [pad; 4],
        }
    }

    /// One tap, every pixel.
    pub fn pointwise() -> Window {
        Window::square(1, 1, 0)
    }

    /// Whether each window is one pixel, and each pixel a window.
    pub fn is_pointwise(self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pads == [0; 4]
    }

    /// Taps of a window.
    pub fn taps(self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether there are windows of this form.
    pub(crate) fn check(self) -> Result<(), WindowError> {
        let numbers = || {
            let [k, s, d] = [self.kernel, self.stride, self.dilation];
            k.into_iter().chain(s).chain(d)
        };
        if numbers().any(|x| x == 0) {
            return Err(WindowError::Zero(self));
        }
        if numbers().chain(self.pads).any(|x| x > u16::MAX as usize) {
            return Err(WindowError::Large(self));
        }
        Ok(())
    }

    /// Rows and columns of windows on a picture of `h` rows and `w` columns.
    pub fn output(self, h: usize, w: usize) -> Result<[usize; 2], WindowError> {
        self.check()?;
        let along = |axis: usize, size: usize| {
            let padded = size + self.pads[axis] + self.pads[axis + 2];
            let reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
            padded
                .checked_sub(reach)
                .map(|left| left / self.stride[axis] + 1)
        };
        match (along(0, h), along(1, w)) {
            (Some(rows), Some(columns)) => Ok([rows, columns]),
            _ => Err(WindowError::NoRoom { window: self, h, w }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_with_stride_two_halves_a_picture() {
        let window = Window::square(3, 2, 1);
        assert_eq!(window.output(224, 224), Ok([112, 112]));
        assert_eq!(window.output(7, 5), Ok([4, 3]));
    }

    #[test]
    fn dilated_windows_reach_further() {
        let mut window = Window::square(3, 1, 0);
        window.dilation = [2, 2];
        assert_eq!(window.output(5, 6), Ok([1, 2]));
        assert!(matches!(
            window.output(4, 6),
            Err(WindowError::NoRoom { .. })
        ));
    }
}
