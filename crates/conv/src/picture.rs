//! Pictures as kernels see them: pixels one after the other, each with its channels.

/// How large a batch of pictures is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Pictures.
    pub n: usize,
    /// Rows of pixels.
    pub h: usize,
    /// Pixels in a row.
    pub w: usize,
    /// Channels of a pixel.
    pub c: usize,
}

impl Shape {
    /// Pixels of all pictures.
    pub fn pixels(self) -> usize {
        self.n * self.h * self.w
    }

    /// Values of all pictures.
    pub fn values(self) -> usize {
        self.pixels() * self.c
    }
}

/// Values `[n, h, w, c]`, each pixel `stride` after the one before it (`stride ≥ c`, so that
/// channels of several pictures can lie side by side and need not be copied to be joined).
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a, T = f32> {
    values: &'a [T],
    shape: Shape,
    stride: usize,
}

/// A [`Picture`] to write to.
#[derive(Debug)]
pub struct PictureMut<'a, T = f32> {
    values: &'a mut [T],
    shape: Shape,
    stride: usize,
}

/// Values from the first pixel's first channel to the last one's last.
fn extent(shape: Shape, stride: usize) -> usize {
    match shape.values() {
        0 => 0,
        _ => (shape.pixels() - 1) * stride + shape.c,
    }
}

fn check(len: usize, shape: Shape, stride: usize) {
    assert!(
        stride >= shape.c,
        "a pixel is {} apart from the next, of {} channels",
        stride,
        shape.c
    );
    assert!(
        len >= extent(shape, stride),
        "{len} values are not {shape:?} with {stride} from pixel to pixel"
    );
}

impl<'a, T> Picture<'a, T> {
    /// Pixels without gaps.
    ///
    /// # Panics
    /// When there are fewer values than the shape says.
    pub fn new(values: &'a [T], shape: Shape) -> Self {
        Picture::strided(values, shape, shape.c)
    }

    /// Pixels `stride` apart, the first channel of the first at the beginning.
    ///
    /// # Panics
    /// When there are fewer values than the shape says, or pixels would overlap.
    pub fn strided(values: &'a [T], shape: Shape, stride: usize) -> Self {
        check(values.len(), shape, stride);
        Picture {
            values,
            shape,
            stride,
        }
    }

    /// How large it is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// From a pixel to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All values, gaps included.
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// The channels of pixel `i` of all.
    pub fn pixel(&self, i: usize) -> &'a [T] {
        &self.values[i * self.stride..][..self.shape.c]
    }
}

impl<'a, T> PictureMut<'a, T> {
    /// Pixels without gaps.
    ///
    /// # Panics
    /// When there are fewer values than the shape says.
    pub fn new(values: &'a mut [T], shape: Shape) -> Self {
        PictureMut::strided(values, shape, shape.c)
    }

    /// Pixels `stride` apart, the first channel of the first at the beginning.
    ///
    /// # Panics
    /// When there are fewer values than the shape says, or pixels would overlap.
    pub fn strided(values: &'a mut [T], shape: Shape, stride: usize) -> Self {
        check(values.len(), shape, stride);
        PictureMut {
            values,
            shape,
            stride,
        }
    }

    /// How large it is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// From a pixel to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All values, gaps included.
    pub fn values(&mut self) -> &mut [T] {
        self.values
    }

    /// The channels of pixel `i` of all.
    pub fn pixel(&mut self, i: usize) -> &mut [T] {
        &mut self.values[i * self.stride..][..self.shape.c]
    }

    /// The same pixels, to read.
    pub fn as_ref(&self) -> Picture<'_, T> {
        Picture {
            values: self.values,
            shape: self.shape,
            stride: self.stride,
        }
    }
}
