//! Which instruction set the kernels run on, and the one door through which they reach it.

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Portable};

/// An instruction set that this machine has. Only [`Isa::all`] makes one, after it has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Work that is written once for all sets of vectors.
pub(super) trait Work {
    /// Does it. Must be `#[inline(always)]`, with all that it calls, to be compiled for the set.
    fn run<L: Lanes>(self, lanes: L);
}

impl Isa {
    /// The sets that this machine has, the fastest first.
    pub(super) fn all() -> impl Iterator<Item = Isa> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            is_x86_feature_detected!("avx512f").then_some(Set::Avx512),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(Set::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors: [Option<Set>; 0] = [];
        vectors
            .into_iter()
            .flatten()
            .chain([Set::Portable])
            .map(Isa)
    }

    /// The fastest.
    pub(super) fn best() -> Isa {
        Isa::all().next().unwrap_or(Isa(Set::Portable))
    }

    /// Runs work on vectors of this set.
    pub(super) fn run(self, work: impl Work) {
        match self.0 {
            // SAFETY: a value of this type exists only where the machine has the set.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2(work) },
            Set::Portable => work.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(work: impl Work) {
    work.run(Avx512::here());
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(work: impl Work) {
    work.run(Avx2::here());
}
