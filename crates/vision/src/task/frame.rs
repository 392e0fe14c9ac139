//! Pictures in the size of an input, and the way back.

use sedge_formats::image::Image;

use super::{Channels, Preset};

/// How a picture gets the input's size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fit {
    /// All of it, whatever that does to its proportions.
    Stretch,
    /// All of it in its proportions, and around it one colour.
    Letterbox {
        /// The value of all three colours around it, from 0 to 255.
        fill: f32,
        /// Whether it is in the middle, not in the upper left corner.
        centre: bool,
    },
    /// Its middle in its proportions. The shorter side is `zoom` times as long as what is seen.
    Crop {
        /// 1 shows all of the shorter side.
        zoom: f32,
    },
}

/// How places in an input are places in the picture: `input = picture · scale + offset`, columns
/// first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Columns and rows of the picture.
    pub size: [usize; 2],
    /// Pixels of the input for each of the picture.
    pub scale: [f32; 2],
    /// Where the picture's upper left corner is in the input.
    pub offset: [f32; 2],
}

impl Frame {
    /// A place of the picture in the input.
    pub fn place(&self, x: f32, y: f32) -> [f32; 2] {
        let [sx, sy] = self.scale;
        [x * sx + self.offset[0], y * sy + self.offset[1]]
    }

    /// Bounds in the input as bounds in the picture, without what is outside of it.
    pub fn picture(&self, bounds: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            let axis = i % 2;
            let x = (bounds[i] - self.offset[axis]) / self.scale[axis];
            x.clamp(0.0, self.size[axis] as f32)
        })
    }
}

/// Pictures that are longer than this many times their width lose their ends before they are
/// cropped to the middle, so that no picture grows without bound.
const LONGEST: usize = 4;

/// The input `[3, rows, columns]` that a picture becomes. The picture is whole and not empty.
pub(super) fn fit(preset: &Preset, size: [usize; 2], image: &Image) -> (Vec<f32>, Frame) {
    let picture = [image.width, image.height];
    let ratio = |axis: usize| size[axis] as f32 / picture[axis] as f32;
    let (fill, resized, frame) = match preset.fit {
        Fit::Stretch => {
            let frame = Frame {
                size: picture,
                scale: [ratio(0), ratio(1)],
                offset: [0.0; 2],
            };
            (0.0, image.resized(size[0], size[1], preset.filter), frame)
        }
        Fit::Letterbox { fill, centre } => {
            let scale = ratio(0).min(ratio(1));
            // As the models' own programs: whole pixels in a corner, the nearest in the middle.
            let side = |axis: usize| {
                let exact = picture[axis] as f32 * scale;
                let side = if centre { exact.round() } else { exact.floor() };
                (side as usize).clamp(1, size[axis])
            };
            let [w, h] = [side(0), side(1)];
            let offset = match centre {
                true => [(size[0] - w) / 2, (size[1] - h) / 2],
                false => [0; 2],
            };
            let frame = Frame {
                size: picture,
                scale: [scale; 2],
                offset: offset.map(|x| x as f32),
            };
            (fill, image.resized(w, h, preset.filter), frame)
        }
        Fit::Crop { zoom } => {
            let (middle, cut) = middle(image);
            let part = [middle.width, middle.height];
            let scale = (0..2)
                .map(|axis| size[axis] as f32 * zoom / part[axis] as f32)
                .fold(0.0, f32::max);
            let side = |axis: usize| ((part[axis] as f32 * scale).round() as usize).max(size[axis]);
            let [w, h] = [side(0), side(1)];
            let offset = |axis: usize, side: usize| {
                -(((side - size[axis]) as f32 / 2.0).round()) - cut[axis] as f32 * scale
            };
            let frame = Frame {
                size: picture,
                scale: [scale; 2],
                offset: [offset(0, w), offset(1, h)],
            };
            (0.0, middle.resized(w, h, preset.filter), frame)
        }
    };
    // Where the resized picture lies: before the input's corner when it is cropped.
    let at = |axis: usize, side: usize| match preset.fit {
        Fit::Crop { .. } => -(((side - size[axis]) as f32 / 2.0).round() as isize),
        _ => frame.offset[axis] as isize,
    };
    let corner = [at(0, resized.width), at(1, resized.height)];
    (planes(preset, size, &resized, corner, fill), frame)
}

/// The middle of a long picture, and what was cut off at the left and above.
fn middle(image: &Image) -> (Image, [usize; 2]) {
    let (w, h) = (image.width, image.height);
    let width = w.min(h.saturating_mul(LONGEST));
    let height = h.min(w.saturating_mul(LONGEST));
    let cut = [(w - width) / 2, (h - height) / 2];
    let rows = image.pixels.chunks_exact(w * 3).skip(cut[1]).take(height);
    let part = |row: &[u8]| row[cut[0] * 3..][..width * 3].to_vec();
    let pixels = rows.flat_map(part).collect();
    let image = Image {
        width,
        height,
        pixels,
    };
    (image, cut)
}

/// Normalised colours, each in a plane of its own. The picture's corner is at `corner`.
fn planes(
    preset: &Preset,
    [width, height]: [usize; 2],
    image: &Image,
    corner: [isize; 2],
    fill: f32,
) -> Vec<f32> {
    let mut input = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        let colour = match preset.channels {
            Channels::Rgb => channel,
            Channels::Bgr => 2 - channel,
        };
        let normal = |x: f32| (x * preset.scale - preset.mean[channel]) / preset.std[channel];
        let table: [f32; 256] = std::array::from_fn(|x| normal(x as f32));
        let around = normal(fill);
        for y in 0..height as isize {
            let y = usize::try_from(y - corner[1]).ok();
            let row = y.filter(|&y| y < image.height);
            let row = row.map(|y| &image.pixels[y * image.width * 3..][..image.width * 3]);
            input.extend((0..width as isize).map(|x| {
                let x = usize::try_from(x - corner[0]).ok();
                match (row, x.filter(|&x| x < image.width)) {
                    (Some(row), Some(x)) => table[usize::from(row[x * 3 + colour])],
                    _ => around,
                }
            }));
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::super::presets;
    use super::*;
    use proptest::prelude::*;

    fn preset(name: &str) -> &'static Preset {
        presets().iter().find(|x| x.name == name).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn places_go_to_the_input_and_back(
            w in 1usize..90, h in 1usize..90, x in 0f32..1.0, y in 0f32..1.0, i in 0usize..10,
            iw in 1usize..40, ih in 1usize..40,
        ) {
            let image = Image { width: w, height: h, pixels: vec![9; w * h * 3] };
            let (input, frame) = fit(&presets()[i % presets().len()], [iw, ih], &image);
            prop_assert_eq!(input.len(), 3 * iw * ih);
            let (x, y) = (x * w as f32, y * h as f32);
            let [a, b] = frame.place(x, y);
            let back = frame.picture([a, b, a, b]);
            prop_assert!((back[0] - x).abs() < 1e-2 && (back[1] - y).abs() < 1e-2, "{:?}", back);
        }
    }

    /// A picture whose red grows to the right and whose green grows downwards.
    fn slope(width: usize, height: usize) -> Image {
        let pixel = |i: usize| [(i % width * 2) as u8, (i / width * 2) as u8, 7];
        Image {
            width,
            height,
            pixels: (0..width * height).flat_map(pixel).collect(),
        }
    }

    #[test]
    fn a_letterbox_is_filled_and_blue_comes_first() {
        let (input, frame) = fit(preset("yolox"), [8, 8], &slope(16, 8));
        assert_eq!(frame.scale, [0.5; 2]);
        assert_eq!(input[0], 7.0);
        assert_eq!(input[4 * 8], 114.0, "below the picture");
        let (input, frame) = fit(preset("yolov8"), [8, 8], &slope(16, 8));
        assert_eq!(frame.offset, [0.0, 2.0]);
        let bytes = |i: usize| (input[i] * 255.0).round();
        assert_eq!(bytes(0), 114.0, "above the picture");
        assert_eq!(bytes(64 * 2 + 2 * 8), 7.0);
    }

    #[test]
    fn what_the_frame_says_is_where_pixels_are() {
        for (w, h) in [(100, 80), (60, 120), (20, 110)] {
            for name in ["imagenet", "segment", "yolov8"] {
                let preset = preset(name);
                let (input, frame) = fit(preset, [32, 32], &slope(w, h));
                let (x, y) = (16usize, 16usize);
                let red = input[y * 32 + x] * preset.std[0] + preset.mean[0];
                let green = input[32 * 32 + y * 32 + x] * preset.std[1] + preset.mean[1];
                let middle = [x as f32 + 0.5, y as f32 + 0.5];
                let place = frame.picture([middle[0], middle[1], middle[0], middle[1]]);
                let tolerance = 1.5 / frame.scale[0].min(frame.scale[1]).min(1.0);
                let found = [red * 255.0 / 2.0 + 0.5, green * 255.0 / 2.0 + 0.5];
                for axis in 0..2 {
                    let off = (found[axis] - place[axis]).abs();
                    assert!(off < tolerance, "{name} {w} × {h}: {found:?} {place:?}");
                }
            }
        }
    }

    #[test]
    fn a_line_of_pixels_does_not_grow_without_bound() {
        let (input, _) = fit(preset("imagenet"), [32, 32], &slope(1, 100_000));
        assert_eq!(input.len(), 3 * 32 * 32);
    }
}
