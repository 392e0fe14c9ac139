//! With how many bits activations are multiplied: a number for each group of 64 columns.
//!
//! Few groups with outliers may keep 8 bits while the others have 4 or fewer, in one product
//! (COMET's fine-grained mixed precision): all are 8-bit integers to the kernels.

use std::sync::Arc;

use super::layout::GROUP;

/// Bits of the activations that a matrix reads, 1 to 8 for each group of 64 columns, at least
/// one of them below 8. Cloning shares the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationBits(Arc<[u8]>);

/// Why a list of bits is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitsError {
    /// Neither one number nor one for each group.
    #[error("{found} numbers of bits for {cols} columns, which are {groups} groups of 64")]
    Count {
        /// Numbers given.
        found: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Groups that these make.
        groups: usize,
    },
    /// A number out of range.
    #[error("group {group} has {found} bits; there are 1 to 8")]
    Range {
        /// Which.
        group: usize,
        /// Its number.
        found: u8,
    },
}

impl ActivationBits {
    /// Takes one number for all groups of `cols` columns, or one for each. `None` where all
    /// are 8, which is what activations have without a list.
    ///
    /// # Errors
    /// When there are more or fewer numbers, or one is not from 1 to 8.
    pub fn new(bits: &[u8], cols: usize) -> Result<Option<ActivationBits>, BitsError> {
        let groups = cols.div_ceil(GROUP);
        if bits.len() != 1 && bits.len() != groups {
            return Err(BitsError::Count {
                found: bits.len(),
                cols,
                groups,
            });
        }
        let out_of_range = |(_, bits): &(usize, &u8)| !(1..=8).contains(*bits);
        if let Some((group, &found)) = bits.iter().enumerate().find(out_of_range) {
            return Err(BitsError::Range { group, found });
        }
        if bits.iter().all(|&b| b == 8) {
            return Ok(None);
        }
        let each = match bits {
            [all] => vec![*all; groups],
            each => each.to_vec(),
        };
        Ok(Some(ActivationBits(each.into())))
    }

    /// The bits of each group.
    pub fn groups(&self) -> &[u8] {
        &self.0
    }

    /// The most bits of some groups from `first` on; those that fill a row up have as many as the
    /// last.
    pub(super) fn of_some(&self, first: usize, groups: usize) -> usize {
        let first = first.min(self.0.len() - 1);
        let some = &self.0[first..self.0.len().min(first + groups)];
        some.iter().copied().max().unwrap_or(8).into()
    }

    /// The bits of all groups, if they are alike.
    pub(super) fn alike(&self) -> Option<usize> {
        let first = *self.0.first()?;
        self.0.iter().all(|&b| b == first).then_some(first.into())
    }

    /// The larger of both, group by group, where two matrices read the same activations.
    pub fn finest(
        a: Option<&ActivationBits>,
        b: Option<&ActivationBits>,
    ) -> Option<ActivationBits> {
        let (a, b) = (a?, b?);
        if a == b {
            return Some(a.clone());
        }
        let each: Vec<u8> = a.0.iter().zip(&*b.0).map(|(a, b)| *a.max(b)).collect();
        (!each.iter().all(|&b| b == 8)).then(|| ActivationBits(each.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_number_for_each_group_or_one_for_all() {
        let of = |bits: &[u8], cols| ActivationBits::new(bits, cols);
        assert_eq!(of(&[4], 130).unwrap().unwrap().groups(), [4, 4, 4]);
        assert_eq!(of(&[4, 8, 1], 130).unwrap().unwrap().groups(), [4, 8, 1]);
        assert_eq!(of(&[8, 8, 8], 130), Ok(None));
        assert!(matches!(
            of(&[4, 8], 130),
            Err(BitsError::Count { groups: 3, .. })
        ));
        assert_eq!(
            of(&[4, 9, 4], 130),
            Err(BitsError::Range { group: 1, found: 9 })
        );
        assert!(of(&[0], 64).is_err());
    }

    #[test]
    fn of_two_lists_the_larger_numbers_count() {
        let of = |bits: &[u8]| ActivationBits::new(bits, 128).unwrap().unwrap();
        let finest = |a: &[u8], b: &[u8]| ActivationBits::finest(Some(&of(a)), Some(&of(b)));
        assert_eq!(finest(&[4, 8], &[4, 8]), Some(of(&[4, 8])));
        assert_eq!(finest(&[4, 6], &[5, 2]), Some(of(&[5, 6])));
        assert_eq!(finest(&[8, 2], &[2, 8]), None);
        assert_eq!(ActivationBits::finest(Some(&of(&[4])), None), None);
    }
}
