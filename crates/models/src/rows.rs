//! A batch's rows by the weights that compute them: which member of the family, which adapter.
//! A stage's parts keep the rows' order, so the rows of generated tokens come first in each.

use std::sync::Arc;

use crate::adapter::{Adapter, Change, NormPart, Part as Product};
use crate::batch::{Batch, Variant};
use crate::changed::Changes;
use crate::family::Family;
use crate::input::Rows;

/// Rows that a stage computes with one set of weights.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// Whose weights.
    pub(crate) member: usize,
    /// Which of the batch's rows, in order; all of them if there is only one part.
    pub(crate) of: Vec<u32>,
    pub(crate) size: Rows,
    pub(crate) adapted: Adapted,
}

/// The adapters of some rows.
#[derive(Debug, Default)]
pub(crate) struct Adapted {
    adapters: Vec<(Arc<Adapter>, Vec<u32>)>,
    /// For each row one more than the number of its adapter, 0 without one. Empty without any.
    row: Vec<u32>,
}

impl Adapted {
    /// The same of some rows, numbered anew.
    pub(crate) fn some(&self, rows: &[u32]) -> Adapted {
        let mut some = Adapted::default();
        if !self.is_empty() {
            for (i, &row) in rows.iter().enumerate() {
                if let Some(number) = self.number(row as usize) {
                    some.add(&self.adapters[number].0, i..i + 1);
                }
            }
        }
        some
    }

    fn clear(&mut self) {
        self.adapters.clear();
        self.row.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// The number of a row's adapter.
    fn number(&self, row: usize) -> Option<usize> {
        (*self.row.get(row)? as usize).checked_sub(1)
    }

    /// A row's adapter.
    pub(crate) fn of(&self, row: usize) -> Option<&Adapter> {
        let (adapter, _) = self.adapters.get(self.number(row)?)?;
        Some(adapter)
    }

    fn add(&mut self, adapter: &Arc<Adapter>, rows: impl Iterator<Item = usize>) {
        let found = self
            .adapters
            .iter()
            .position(|(a, _)| Arc::ptr_eq(a, adapter));
        let number = found.unwrap_or_else(|| {
            self.adapters.push((adapter.clone(), Vec::new()));
            self.adapters.len() - 1
        });
        for row in rows {
            if self.row.len() <= row {
                self.row.resize(row + 1, 0);
            }
            self.row[row] = number as u32 + 1;
            self.adapters[number].1.push(row as u32);
        }
    }

    /// The changes of a product, each with its rows.
    pub(crate) fn changes<'a>(
        &'a self,
        find: impl Fn(&'a Adapter) -> Option<&'a Change>,
    ) -> Changes<'a> {
        let found =
            |(adapter, rows): &'a (Arc<Adapter>, Vec<u32>)| Some((find(adapter)?, rows.as_slice()));
        self.adapters.iter().filter_map(found).collect()
    }

    /// The norm that a row's adapter puts in place of the model's.
    pub(crate) fn norm<'a>(
        &'a self,
        row: usize,
        layer: usize,
        part: NormPart,
        own: &'a [f32],
    ) -> &'a [f32] {
        let changed = self
            .of(row)
            .and_then(|a| a.layers.get(layer)?.norms[part as usize].as_deref());
        changed.unwrap_or(own)
    }
}

impl Part {
    /// The changes of a product of a layer.
    pub(crate) fn changes(&self, layer: usize, product: Product) -> Changes<'_> {
        if self.adapted.is_empty() {
            return Vec::new();
        }
        self.adapted
            .changes(|a| a.layers.get(layer)?.parts[product as usize].as_ref())
    }
}

/// All rows of a batch.
#[derive(Debug, Default)]
pub(crate) struct Who {
    /// Each row's member; empty if all are of the first.
    member: Vec<u32>,
    /// The rows as one part.
    pub(crate) whole: Part,
    /// The parts of the stage that was asked for last, and the weights that they were made for.
    parts: Vec<Part>,
    key: Vec<usize>,
    /// The members that the batch has.
    present: Vec<usize>,
}

impl Who {
    /// Takes a batch's rows, the first `integers` of which packed weights multiply as integers.
    pub(crate) fn fill(&mut self, batch: &Batch, size: Rows, family: &Family) {
        self.whole.size = size;
        self.whole.adapted.clear();
        self.member.clear();
        self.present.clear();
        self.key.clear();
        for (segment, variant) in batch.segments.iter().zip(&batch.variants) {
            let Variant { member, adapter } = variant;
            assert!(*member < family.members.len(), "a member of the family");
            if *member > 0 {
                self.member.resize(size.all, 0);
                self.member[segment.rows.clone()].fill(*member as u32);
            }
            if let Some(adapter) = adapter {
                self.whole.adapted.add(adapter, segment.rows.clone());
            }
        }
        if self.member.is_empty() {
            self.present.push(0);
        }
        for &member in &self.member {
            if !self.present.contains(&(member as usize)) {
                self.present.push(member as usize);
            }
        }
        self.whole.member = self.present.first().copied().unwrap_or(0);
    }

    /// Keeps no adapter in memory.
    pub(crate) fn forget(&mut self) {
        self.whole.adapted.clear();
        self.parts.iter_mut().for_each(|part| part.adapted.clear());
    }

    /// The member of a row.
    pub(crate) fn member(&self, row: usize) -> usize {
        self.member.get(row).map_or(0, |&m| m as usize)
    }

    /// The parts of a stage, where `first` names the first member with a member's weights.
    pub(crate) fn parts(&mut self, first: impl Fn(usize) -> usize) -> &[Part] {
        let one = first(self.present[0]);
        if self.present.iter().all(|&m| first(m) == one) {
            self.whole.member = one;
            return std::slice::from_ref(&self.whole);
        }
        let same = self.key.len() == self.present.len()
            && self
                .present
                .iter()
                .zip(&self.key)
                .all(|(&m, &k)| first(m) == k);
        if !same {
            self.split(&first);
        }
        &self.parts
    }

    fn split(&mut self, first: &dyn Fn(usize) -> usize) {
        self.key.clear();
        self.key.extend(self.present.iter().map(|&m| first(m)));
        let mut used = 0;
        for &member in &self.key {
            if self.parts[..used].iter().any(|p| p.member == member) {
                continue;
            }
            if self.parts.len() == used {
                self.parts.push(Part::default());
            }
            let part = &mut self.parts[used];
            used += 1;
            part.member = member;
            part.of.clear();
            let rows = self.member.iter().enumerate();
            let rows = rows.filter(|&(_, &m)| first(m as usize) == member);
            part.of.extend(rows.map(|(row, _)| row as u32));
            let integers = self.whole.size.integers;
            part.size = Rows {
                all: part.of.len(),
                integers: part.of.partition_point(|&row| (row as usize) < integers),
            };
            part.adapted.clear();
            for (adapter, rows) in &self.whole.adapted.adapters {
                // Both lists are in order.
                let here = rows
                    .iter()
                    .filter_map(|row| part.of.binary_search(row).ok());
                let mut here = here.peekable();
                if here.peek().is_some() {
                    part.adapted.add(adapter, here);
                }
            }
        }
        self.parts.truncate(used);
    }
}
