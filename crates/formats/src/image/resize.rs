//! Pictures of another size.

use fast_image_resize::images::{Image as Buffer, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::Image;

/// How pixels become fewer or more. Both are bilinear, with the centres of pixels at halves, and
/// are the same when a picture grows. A model wants the one that it was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Every pixel of a picture that shrinks has its part, as in Pillow and torchvision.
    Antialiased,
    /// The four pixels around a point and no others, as in OpenCV (`INTER_LINEAR`).
    Plain,
}

impl Image {
    /// This picture in another size, whatever that does to its proportions.
    ///
    /// # Panics
    /// When this picture or the size is empty, a side has more than 32 bits, or `pixels` is not
    /// as long as its size takes.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Image {
        self.assert_whole();
        assert!(width > 0 && height > 0, "an empty picture");
        let side = |n| u32::try_from(n).expect("a side of a picture has 32 bits");
        let algorithm = match filter {
            Filter::Antialiased => ResizeAlg::Convolution(FilterType::Bilinear),
            Filter::Plain => ResizeAlg::Interpolation(FilterType::Bilinear),
        };
        let source = ImageRef::new(
            side(self.width),
            side(self.height),
            &self.pixels,
            PixelType::U8x3,
        )
        .expect("as many bytes as the size takes");
        let mut target = Buffer::new(side(width), side(height), PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(algorithm);
        let resized = Resizer::new().resize(&source, &mut target, &options);
        resized.expect("two pictures of one kind");
        Image {
            width,
            height,
            pixels: target.into_vec(),
        }
    }
}
