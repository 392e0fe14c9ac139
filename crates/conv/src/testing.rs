//! What tests of kernels share: numbers, and how near two results are.

/// Numbers that look random and are the same every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values from −1 to 1.
    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        let scale = 1.0 / (1u64 << 39) as f32;
        (0..n)
            .map(|_| (self.next() >> 24) as f32 * scale - 1.0)
            .collect()
    }
}

/// Whether all values differ by `bound` at most, relative where they are above 1.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (&x, &y)) in found.iter().zip(expected).enumerate() {
        let error = (x - y).abs() / y.abs().max(1.0);
        assert!(error <= bound || x == y, "value {i}: {x}, not {y}");
    }
}
