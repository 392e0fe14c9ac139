//! How sparse a network is on its way to its final sparsity.

/// Sparsity at share `t` of the way, 0 to 1: much at first, when there is much to spare, and
/// little at the end (Zhu and Gupta, 2017, arXiv 1710.01878):
/// `final + (initial − final) · (1 − t)³`.
///
/// Training prunes to `cubic(0, 0.9, step / steps)` every some steps; [`super::prune`] to each
/// of its steps, with weights corrected in between.
pub fn cubic(initial: f64, last: f64, t: f64) -> f64 {
    last + (initial - last) * (1.0 - t.clamp(0.0, 1.0)).powi(3)
}
