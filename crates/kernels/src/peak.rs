//! The machine's limits, measured: what a product could reach at best.

use std::hint::black_box;
use std::time::Instant;

use crate::Team;

/// What the machine reached in one thing, and by which instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Bytes, or multiply-adds, in a second.
    pub per_second: f64,
    /// The instruction that did it.
    pub by: &'static str,
}

/// Bytes that are read: far more than caches hold.
const BYTES: usize = 1 << 30;

/// Runs of a measurement; the best counts, since everything else is somebody else's doing.
const RUNS: usize = 5;

/// Bytes of memory that the team reads in a second.
///
/// # Errors
/// When there is no memory to read.
pub fn read_bandwidth(team: &Team) -> std::io::Result<Peak> {
    let mut memory = memmap2::MmapMut::map_anon(BYTES)?;
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    let share = BYTES / team.threads() / 4096 * 4096;
    team.for_rows(&mut memory[..share * team.threads()], share, &|_, part| {
        part.fill(1)
    });
    let memory = &memory[..];
    let seconds = best(|| {
        team.run(team.threads(), &|thread| {
            let mut sums = [0u64; 16];
            for line in memory[thread * share..(thread + 1) * share]
                .as_chunks::<128>()
                .0
            {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum ^= u64::from_ne_bytes(*word);
                }
            }
            black_box(sums);
        });
    });
    Ok(Peak {
        per_second: (share * team.threads()) as f64 / seconds,
        by: "loads",
    })
}

/// 8-bit multiply-adds in a second.
pub fn int8_peak(team: &Team) -> Peak {
    measure(team, &loops::INT8)
}

/// bfloat16 multiply-adds in a second; those of f32 where the machine has no others.
pub fn bf16_peak(team: &Team) -> Peak {
    measure(team, &loops::BF16)
}

/// f32 multiply-adds in a second.
pub fn f32_peak(team: &Team) -> Peak {
    measure(team, &loops::F32)
}

/// A way of multiplying: whether the machine has it, its name, and a loop that runs so many
/// rounds and says how many multiply-adds a round is.
struct Way {
    there: fn() -> bool,
    by: &'static str,
    run: fn(u64) -> u64,
}

fn measure(team: &Team, ways: &[Way]) -> Peak {
    const ROUNDS: u64 = 400_000;
    let way = ways
        .iter()
        .find(|way| (way.there)())
        .unwrap_or(&loops::PLAIN);
    let each = (way.run)(1);
    let seconds = best(|| {
        team.run(team.threads(), &|_| {
            black_box((way.run)(ROUNDS));
        });
    });
    Peak {
        per_second: (each * ROUNDS * team.threads() as u64) as f64 / seconds,
        by: way.by,
    }
}

fn best(mut f: impl FnMut()) -> f64 {
    f();
    let run = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}

mod loops {
    use super::Way;

    /// Where nothing else is there.
    pub(super) const PLAIN: Way = Way {
        there: || true,
        by: "scalar f32",
        run: |rounds| {
            let mut sums = [0.0f32; 16];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = *sum * 0.5 + 1.0;
                }
            }
            std::hint::black_box(sums);
            16
        },
    };

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const INT8: [Way; 0] = [];
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const BF16: [Way; 0] = [];
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const F32: [Way; 0] = [];

    #[cfg(target_arch = "x86_64")]
    pub(super) use x86::{BF16, F32, INT8};

    #[cfg(target_arch = "x86_64")]
    mod x86 {
        use std::arch::asm;

        use super::Way;
        use crate::amx;

        fn avx512() -> bool {
            is_x86_feature_detected!("avx512f")
        }

        fn avx2() -> bool {
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
        }

        /// A loop over one instruction with twelve independent sums and two operands.
        macro_rules! twelve {
            ($name:ident, $feature:literal, $instruction:literal, $register:literal, $each:literal) => {
                #[target_feature(enable = $feature)]
                fn $name(rounds: u64) -> u64 {
                    // SAFETY: changes only the registers that it names; values do not matter.
                    unsafe {
                        asm!(
                            "2:",
                            concat!($instruction, " ", $register, "0, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "1, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "2, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "3, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "4, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "5, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "6, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "7, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "8, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "9, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "10, ", $register, "14, ", $register, "15"),
                            concat!($instruction, " ", $register, "11, ", $register, "14, ", $register, "15"),
                            "dec {rounds}",
                            "jnz 2b",
                            rounds = inout(reg) rounds => _,
                            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                            options(nomem, nostack),
                        );
                    }
                    12 * $each
                }
            };
        }

        twelve!(vnni512, "avx512f,avx512vnni", "vpdpbusd", "zmm", 64);
        twelve!(vnni256, "avx2,avxvnni", "{{vex}} vpdpbusd", "ymm", 32);
        twelve!(bf16_512, "avx512f,avx512bf16", "vdpbf16ps", "zmm", 32);
        twelve!(fma512, "avx512f", "vfmadd231ps", "zmm", 16);
        twelve!(fma256, "avx2,fma", "vfmadd231ps", "ymm", 8);

        /// Products of bytes by way of sums of 16 bits: three instructions for 32.
        #[target_feature(enable = "avx2")]
        fn maddubs(rounds: u64) -> u64 {
            use std::arch::x86_64::*;
            let mut sums = [_mm256_setzero_si256(); 8];
            let (a, b) = (_mm256_set1_epi8(1), _mm256_set1_epi8(2));
            for _ in 0..rounds {
                let a = std::hint::black_box(a);
                for sum in &mut sums {
                    let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(b, *sum));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
            }
            std::hint::black_box(sums);
            8 * 32
        }

        /// A loop over tile products, four sums and four operands.
        macro_rules! tiles {
            ($name:ident, $instruction:literal, $each:literal) => {
                fn $name(rounds: u64) -> u64 {
                    let shape = amx::Shape {
                        sums: 16,
                        left: (16, 64),
                        right: (16, 64),
                    };
                    let _tiles = amx::enter(&shape);
                    // SAFETY: the tiles are configured, or `enter` would not have returned.
                    unsafe {
                        asm!(
                            "2:",
                            concat!($instruction, " tmm0, tmm4, tmm6"),
                            concat!($instruction, " tmm1, tmm4, tmm7"),
                            concat!($instruction, " tmm2, tmm5, tmm6"),
                            concat!($instruction, " tmm3, tmm5, tmm7"),
                            "dec {rounds}",
                            "jnz 2b",
                            rounds = inout(reg) rounds => _,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            options(nomem, nostack),
                        );
                    }
                    4 * $each
                }
            };
        }

        tiles!(tiles_int8, "tdpbssd", 16384);
        tiles!(tiles_bf16, "tdpbf16ps", 8192);

        // SAFETY, of every block below: a way runs only where it is there.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        pub(in super::super) const INT8: [Way; 4] = [
            Way {
                there: amx::available,
                by: "AMX tdpbssd",
                run: tiles_int8,
            },
            Way {
                there: || avx512() && is_x86_feature_detected!("avx512vnni"),
                by: "AVX-512 vpdpbusd",
                run: |n| unsafe { vnni512(n) },
            },
            Way {
                there: || avx2() && is_x86_feature_detected!("avxvnni"),
                by: "AVX vpdpbusd",
                run: |n| unsafe { vnni256(n) },
            },
            Way {
                there: avx2,
                by: "AVX2 vpmaddubsw",
                run: |n| unsafe { maddubs(n) },
            },
        ];

        // SAFETY, of every block below: a way runs only where it is there.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        pub(in super::super) const BF16: [Way; 4] = [
            Way {
                there: amx::available,
                by: "AMX tdpbf16ps",
                run: tiles_bf16,
            },
            Way {
                there: || avx512() && is_x86_feature_detected!("avx512bf16"),
                by: "AVX-512 vdpbf16ps",
                run: |n| unsafe { bf16_512(n) },
            },
            Way {
                there: avx512,
                by: "AVX-512 vfmadd231ps",
                run: |n| unsafe { fma512(n) },
            },
            Way {
                there: avx2,
                by: "AVX2 vfmadd231ps",
                run: |n| unsafe { fma256(n) },
            },
        ];

        // SAFETY, of every block below: a way runs only where it is there.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        pub(in super::super) const F32: [Way; 2] = [
            Way {
                there: avx512,
                by: "AVX-512 vfmadd231ps",
                run: |n| unsafe { fma512(n) },
            },
            Way {
                there: avx2,
                by: "AVX2 vfmadd231ps",
                run: |n| unsafe { fma256(n) },
            },
        ];

        #[cfg(test)]
        mod tests {
            #[test]
            fn every_way_that_is_there_runs() {
                let all = super::INT8.iter().chain(&super::BF16).chain(&super::F32);
                for way in all.filter(|way| (way.there)()) {
                    assert!((way.run)(3) > 0, "{}", way.by);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_name_their_instruction() {
        let team = Team::new(2);
        for peak in [int8_peak(&team), bf16_peak(&team), f32_peak(&team)] {
            assert!(peak.per_second > 0.0 && !peak.by.is_empty());
        }
    }
}
