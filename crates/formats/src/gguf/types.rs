//! ggml's numbers for tensor types, and Sedge's own.

use sedge_kernels::DType;

/// ggml's number of a type (`enum ggml_type` in ggml.h; files depend on it, so it never changes).
/// Those from 1001 on are Sedge's own, far from ggml's: other programs refuse such files.
pub(super) const fn id(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q2K => 10,
        DType::Q3K => 11,
        DType::Q4K => 12,
        DType::Q5K => 13,
        DType::Q6K => 14,
        DType::Iq4Nl => 20,
        DType::Iq4Xs => 23,
        DType::BF16 => 30,
        DType::B1 => 1001,
        DType::B2 => 1002,
        DType::B3 => 1003,
        DType::B4 => 1004,
        DType::B5 => 1005,
        DType::B6 => 1006,
        DType::B7 => 1007,
        DType::B8 => 1008,
    }
}

/// The type with this number, if Sedge computes with it.
pub(super) fn dtype(number: u32) -> Option<DType> {
    DType::ALL.into_iter().find(|&d| id(d) == number)
}

/// Name of any type, for errors.
pub(super) fn name(number: u32) -> &'static str {
    if let Some(dtype) = dtype(number) {
        return dtype.name();
    }
    match number {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        21 => "iq3_s",
        22 => "iq2_s",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        39 => "mxfp4",
        _ => "unknown",
    }
}

/// Names of all types that Sedge computes with.
pub(super) fn known() -> String {
    DType::ALL.map(DType::name).join(", ")
}
