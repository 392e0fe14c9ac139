//! Answers drawn onto their picture.

use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use sedge_formats::image::Image;

use super::{Answer, Found, Mask};

type Colour = [u8; 3];

/// Draws an answer onto its picture: boxes with names and scores, masks as colours through which
/// the picture is seen, names of what it shows in the upper left corner.
///
/// # Panics
/// When the picture has not as many bytes as its size takes.
pub fn draw(image: &mut Image, answer: &Answer) {
    assert_eq!(image.pixels.len(), image.width * image.height * 3);
    let mut canvas = Canvas {
        // Lines and letters grow with the picture.
        unit: (image.width.min(image.height) / 320).max(1) as isize,
        image,
    };
    match answer {
        Answer::Labels(labels) => {
            let line = canvas.unit * 10;
            for (label, i) in labels.iter().zip(0..) {
                let text = format!("{} {:.2}", label.name, label.score);
                canvas.text(0, i * line, &text, colour(label.class));
            }
        }
        Answer::Boxes(boxes) => {
            // The likeliest last, so that it is on top.
            for found in boxes.iter().rev() {
                canvas.found(found);
            }
        }
        Answer::Mask(mask) => canvas.mask(mask),
    }
}

/// A colour for each class; neighbours are far apart on the wheel.
fn colour(class: usize) -> Colour {
    let hue = (class as f32 * 0.618_034).fract() * 6.0;
    [5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + hue) % 6.0;
        (255.0 - 205.0 * k.min(4.0 - k).clamp(0.0, 1.0)) as u8
    })
}

struct Canvas<'a> {
    image: &'a mut Image,
    /// Pixels of a line's width and of a letter's dot.
    unit: isize,
}

impl Canvas<'_> {
    fn fill(&mut self, [left, top, right, bottom]: [isize; 4], colour: Colour) {
        let inside = |x: isize, size: usize| x.clamp(0, size as isize) as usize;
        let (width, height) = (self.image.width, self.image.height);
        let (left, right) = (inside(left, width), inside(right, width));
        for y in inside(top, height)..inside(bottom, height) {
            let row = &mut self.image.pixels[y * width * 3..][..width * 3];
            if left < right {
                for pixel in row[left * 3..right * 3].chunks_exact_mut(3) {
                    pixel.copy_from_slice(&colour);
                }
            }
        }
    }

    fn found(&mut self, found: &Found) {
        let colour = colour(found.class);
        let [left, top, right, bottom] = found.bounds.map(|x| x.clamp(-1e9, 1e9) as isize);
        let line = self.unit * 2;
        self.fill([left, top, right, top + line], colour);
        self.fill([left, bottom - line, right, bottom], colour);
        self.fill([left, top, left + line, bottom], colour);
        self.fill([right - line, top, right, bottom], colour);
        let text = format!("{} {:.2}", found.name, found.score);
        // Above the box, or in it where there is no room.
        let above = top - self.unit * 10;
        let y = if above < 0 { top } else { above };
        self.text(left, y, &text, colour);
    }

    /// Letters in black or white, whichever is seen better, on a bar of the colour.
    fn text(&mut self, x: isize, y: isize, text: &str, bar: Colour) {
        let unit = self.unit;
        let advance = 8 * unit;
        let length = text.chars().count() as isize;
        self.fill([x, y, x + length * advance + 2 * unit, y + 10 * unit], bar);
        let [r, g, b] = bar.map(u32::from);
        let ink = match r * 299 + g * 587 + b * 114 > 127_000 {
            true => [0; 3],
            false => [255; 3],
        };
        for (letter, i) in text.chars().zip(0..) {
            let known = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter));
            let rows = known.or_else(|| BASIC_FONTS.get('?')).unwrap_or_default();
            for (row, dots) in rows.into_iter().enumerate() {
                for column in (0..8).filter(|column| dots >> column & 1 == 1) {
                    let left = x + unit + i * advance + column * unit;
                    let top = y + unit + row as isize * unit;
                    self.fill([left, top, left + unit, top + unit], ink);
                }
            }
        }
    }

    fn mask(&mut self, mask: &Mask) {
        let hidden: Vec<bool> = mask.names.iter().map(|name| name == "background").collect();
        let pixels = self.image.pixels.chunks_exact_mut(3);
        for (pixel, &class) in pixels.zip(&mask.classes) {
            let class = usize::from(class);
            if !hidden.get(class).copied().unwrap_or(false) {
                for (x, c) in pixel.iter_mut().zip(colour(class)) {
                    *x = (u16::from(*x) + u16::from(c)).div_ceil(2) as u8;
                }
            }
        }
        let shares = mask.shares();
        let seen = shares
            .iter()
            .filter(|(class, _)| !hidden[usize::from(*class)]);
        let line = self.unit * 10;
        for (&(class, share), i) in seen.take(8).zip(0..) {
            let class = usize::from(class);
            let text = format!("{} {:.0} %", mask.names[class], share * 100.0);
            self.text(0, i * line, &text, colour(class));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Label;

    fn black(width: usize, height: usize) -> Image {
        Image {
            width,
            height,
            pixels: vec![0; width * height * 3],
        }
    }

    #[test]
    fn a_box_has_its_colour_at_its_edges_and_the_picture_inside() {
        let mut image = black(60, 40);
        let found = Found {
            class: 3,
            name: "é".to_owned(),
            score: 0.5,
            bounds: [10.0, 12.0, 50.0, 38.0],
        };
        draw(&mut image, &Answer::Boxes(vec![found]));
        let pixel = |x: usize, y: usize| &image.pixels[(y * 60 + x) * 3..][..3];
        assert_eq!(pixel(30, 12), colour(3));
        assert_eq!(pixel(49, 25), colour(3));
        assert_eq!(pixel(30, 25), [0; 3]);
        assert_eq!(pixel(55, 25), [0; 3]);
    }

    #[test]
    fn colours_of_neighbours_differ() {
        for class in 0..90 {
            let (a, b) = (colour(class), colour(class + 1));
            let apart: u32 = (0..3).map(|i| u32::from(a[i].abs_diff(b[i]))).sum();
            assert!(apart > 100, "{class}: {a:?} {b:?}");
        }
    }

    #[test]
    fn nothing_is_drawn_outside() {
        let far = |bounds| Found {
            class: 0,
            name: "a name that is much longer than the picture".to_owned(),
            score: 1.0,
            bounds,
        };
        let boxes = [[-1e9, -1e9, 1e9, 1e9], [5.0, 5.0, 1.0, 1.0], [1e30; 4]].map(far);
        draw(&mut black(3, 2), &Answer::Boxes(boxes.to_vec()));
        let label = Label {
            class: 1,
            name: "x".to_owned(),
            score: 0.1,
        };
        draw(&mut black(1, 1), &Answer::Labels(vec![label; 50]));
    }
}
