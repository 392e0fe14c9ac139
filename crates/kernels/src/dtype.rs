//! The types that tensors are stored in.
//! Block types follow ggml's layouts byte for byte, so that a GGUF file is used as it is mapped;
//! `b1` to `b8` are Sedge's own (`block/bipolar.rs`).

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the field's own
pub enum DType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    B1,
    B2,
    B3,
    B4,
    B5,
    B6,
    B7,
    B8,
}

impl DType {
    /// Every type, in a stable order.
    pub const ALL: [DType; 23] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Iq4Nl,
        DType::Iq4Xs,
        DType::B1,
        DType::B2,
        DType::B3,
        DType::B4,
        DType::B5,
        DType::B6,
        DType::B7,
        DType::B8,
    ];

    /// `(name, values per block, bytes per block)`.
    const fn facts(self) -> (&'static str, usize, usize) {
        match self {
            DType::F32 => ("f32", 1, 4),
            DType::F16 => ("f16", 1, 2),
            DType::BF16 => ("bf16", 1, 2),
            DType::Q8_0 => ("q8_0", 32, 34),
            DType::Q4_0 => ("q4_0", 32, 18),
            DType::Q4_1 => ("q4_1", 32, 20),
            DType::Q5_0 => ("q5_0", 32, 22),
            DType::Q5_1 => ("q5_1", 32, 24),
            DType::Q2K => ("q2_k", 256, 84),
            DType::Q3K => ("q3_k", 256, 110),
            DType::Q4K => ("q4_k", 256, 144),
            DType::Q5K => ("q5_k", 256, 176),
            DType::Q6K => ("q6_k", 256, 210),
            DType::Iq4Nl => ("iq4_nl", 32, 18),
            DType::Iq4Xs => ("iq4_xs", 256, 136),
            DType::B1 => ("b1", 128, 18),
            DType::B2 => ("b2", 128, 34),
            DType::B3 => ("b3", 128, 50),
            DType::B4 => ("b4", 128, 66),
            DType::B5 => ("b5", 128, 82),
            DType::B6 => ("b6", 128, 98),
            DType::B7 => ("b7", 128, 114),
            DType::B8 => ("b8", 128, 130),
        }
    }

    /// Bits of a value of the bipolar types; `None` for others.
    pub const fn bipolar_bits(self) -> Option<usize> {
        Some(match self {
            DType::B1 => 1,
            DType::B2 => 2,
            DType::B3 => 3,
            DType::B4 => 4,
            DType::B5 => 5,
            DType::B6 => 6,
            DType::B7 => 7,
            DType::B8 => 8,
            _ => return None,
        })
    }

    /// The bipolar type of so many bits, from 1 to 8.
    pub const fn bipolar(bits: usize) -> Option<DType> {
        Some(match bits {
            1 => DType::B1,
            2 => DType::B2,
            3 => DType::B3,
            4 => DType::B4,
            5 => DType::B5,
            6 => DType::B6,
            7 => DType::B7,
            8 => DType::B8,
            _ => return None,
        })
    }

    /// Lower-case name, as the command line takes and prints it.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// The type with this name, in any case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL
            .into_iter()
            .find(|d| d.name().eq_ignore_ascii_case(name))
    }

    /// Values in one block; 1 for the plain types.
    pub const fn block_len(self) -> usize {
        self.facts().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().2
    }

    /// Bytes of `values` values, or `None` when they do not fill whole blocks or overflow.
    pub fn bytes_for(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_len()) {
            return None;
        }
        (values / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
