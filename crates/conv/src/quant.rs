//! Grids of 256 numbers.

/// A grid of numbers: `scale · (q − zero)` for each `q` of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    /// From a number to the next.
    pub scale: f32,
    /// The code of 0.
    pub zero: u8,
}
