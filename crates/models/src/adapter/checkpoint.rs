//! An adapter's tensors, grouped by the module that they change.
//! A tensor that was handed out is gone from here, so what nothing asked for shows in the end.

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::safetensors::Tensor;
use sedge_kernels::{DType, Matrix, dequantize};

use super::base::Piece;
use super::error::AdapterError;

/// One tensor of the checkpoint.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Bytes,
    /// The base that the checkpoint names, for errors.
    base: Option<String>,
}

/// The tensors of one module by their field: `lora_A.weight` of
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
#[derive(Debug)]
pub(crate) struct Group {
    /// `model.layers.0.self_attn.q_proj`.
    pub(crate) module: String,
    fields: IndexMap<String, Entry>,
    /// The first of the fields that it had.
    first: String,
}

/// All tensors that nothing has asked for yet.
#[derive(Debug)]
pub(crate) struct Tensors {
    map: IndexMap<String, Entry>,
}

impl Tensors {
    /// Takes tensors of plain types whose values are numbers.
    pub(crate) fn new(
        tensors: IndexMap<String, Tensor>,
        base: Option<String>,
    ) -> Result<Tensors, AdapterError> {
        let mut map = IndexMap::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let Tensor { dtype, shape, data } = tensor;
            let (name, entry) = (
                name.clone(),
                Entry {
                    name,
                    dtype,
                    shape,
                    data,
                    base: base.clone(),
                },
            );
            entry.check()?;
            map.insert(name, entry);
        }
        Ok(Tensors { map })
    }

    /// Takes the groups of modules out that have a field which begins with `prefix`.
    pub(crate) fn groups(&mut self, prefix: &str) -> Vec<Group> {
        let mut groups: IndexMap<String, IndexMap<String, Entry>> = IndexMap::new();
        let of_prefix = self
            .map
            .extract_if(.., |name, _| split(name, prefix).is_some());
        for (name, entry) in of_prefix {
            let (module, field) = split(&name, prefix).expect("it was found before");
            let group = groups.entry(module.to_string()).or_default();
            group.insert(field.to_string(), entry);
        }
        let group = |(module, fields): (String, IndexMap<String, Entry>)| Group {
            first: fields.keys().next().cloned().unwrap_or_default(),
            module,
            fields,
        };
        groups.into_iter().map(group).collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.map.keys()
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Entry> {
        self.map.shift_remove(name)
    }

    /// Refuses what nothing has asked for.
    pub(crate) fn done(&self, method: &'static str) -> Result<(), AdapterError> {
        match self.map.keys().next() {
            Some(name) => Err(AdapterError::Unused {
                tensor: name.clone(),
                method,
            }),
            None => Ok(()),
        }
    }
}

/// The name of a module as its base has it.
pub(crate) fn module_name(name: &str) -> &str {
    name.strip_prefix("base_model.model.").unwrap_or(name)
}

/// Module and field of a tensor whose field begins with `prefix`.
fn split<'a>(name: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let mut start = 0;
    for part in name.split('.') {
        if part.starts_with(prefix) {
            let module = name[..start].trim_end_matches('.');
            return Some((module_name(module), &name[start..]));
        }
        start += part.len() + 1;
    }
    None
}

impl Group {
    pub(crate) fn take(&mut self, field: &str) -> Option<Entry> {
        self.fields.shift_remove(field)
    }

    pub(crate) fn need(&mut self, field: &str) -> Result<Entry, AdapterError> {
        match self.take(field) {
            Some(entry) => Ok(entry),
            None => Err(AdapterError::Incomplete {
                module: self.module.clone(),
                found: self.first.clone(),
                missing: field.into(),
            }),
        }
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Name of one of its tensors, for errors.
    pub(crate) fn any(&self) -> &str {
        self.fields.values().next().map_or("", |entry| &entry.name)
    }

    /// Refuses fields that nothing has asked for.
    pub(crate) fn done(self, method: &'static str) -> Result<(), AdapterError> {
        match self.fields.into_values().next() {
            Some(Entry { name: tensor, .. }) => Err(AdapterError::Unused { tensor, method }),
            None => Ok(()),
        }
    }
}

impl Entry {
    fn check(&self) -> Result<(), AdapterError> {
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(AdapterError::Dtype {
                tensor: self.name.clone(),
                dtype: self.dtype.to_string(),
            });
        }
        let values = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if values.and_then(|n| self.dtype.bytes_for(n)) != Some(self.data.len()) {
            return Err(AdapterError::Size {
                tensor: self.name.clone(),
                dtype: self.dtype.to_string(),
                shape: self.shape.clone(),
                found: self.data.len(),
            });
        }
        let size = self.dtype.block_bytes();
        let mut values = [0.0; 1024];
        let finite = self.data.chunks(values.len() * size).all(|part| {
            let values = &mut values[..part.len() / size];
            decode(self.dtype, part, values);
            values.iter().all(|v| v.is_finite())
        });
        match finite {
            true => Ok(()),
            false => Err(AdapterError::NotFinite {
                tensor: self.name.clone(),
            }),
        }
    }

    /// Refuses a tensor whose shape is not the one that the model's sizes give it.
    pub(crate) fn fits(&self, expected: &[usize]) -> Result<(), AdapterError> {
        match self.shape == expected {
            true => Ok(()),
            false => Err(AdapterError::Base {
                tensor: self.name.clone(),
                found: self.shape.clone(),
                expected: expected.to_vec(),
                base: self.base.clone(),
            }),
        }
    }

    /// A size of a matrix, by dimension.
    pub(crate) fn dim(&self, dim: usize) -> Result<usize, AdapterError> {
        match self.shape[..] {
            [_, _] => Ok(self.shape[dim]),
            _ => Err(self.misshapen("two dimensions")),
        }
    }

    pub(crate) fn misshapen(&self, expected: &str) -> AdapterError {
        AdapterError::Shape {
            tensor: self.name.clone(),
            found: self.shape.clone(),
            expected: expected.into(),
        }
    }

    /// Refuses another rank than the configuration's.
    pub(crate) fn of_rank(&self, found: usize, stated: usize) -> Result<(), AdapterError> {
        match found == stated {
            true => Ok(()),
            false => Err(AdapterError::Rank {
                tensor: self.name.clone(),
                found,
                stated,
            }),
        }
    }

    /// All values, in memory of their own.
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        decode(self.dtype, &self.data, &mut values);
        values
    }

    /// `[rows, cols]` in memory of its own: the file may change or go away.
    pub(crate) fn matrix(&self, rows: usize, cols: usize) -> Result<Matrix, AdapterError> {
        self.fits(&[rows, cols])?;
        Ok(self.made(rows, cols, self.data.to_vec()))
    }

    /// The first `cols` columns, `[rows, cols]`.
    pub(crate) fn first_columns(&self, cols: usize) -> Result<Matrix, AdapterError> {
        let (rows, all) = (self.dim(0)?, self.dim(1)?);
        if cols > all {
            self.fits(&[rows, cols])?;
        }
        let size = self.dtype.block_bytes();
        let row = |row: usize| &self.data[row * all * size..][..cols * size];
        let bytes = (0..rows).flat_map(row).copied().collect();
        Ok(self.made(rows, cols, bytes))
    }

    /// Of `[module's rows, rank]` the rows of a piece, transposed: `[rank, piece's rows]`.
    pub(crate) fn turned(&self, piece: &Piece<'_>) -> Result<Matrix, AdapterError> {
        let (rows, rank) = (piece.rows(), self.dim(1)?);
        if self.dim(0)? < piece.end() {
            self.fits(&[piece.end(), rank])?;
        }
        let size = self.dtype.block_bytes();
        let mut bytes = Vec::with_capacity(rank * rows * size);
        for k in 0..rank {
            for row in 0..rows {
                let at = (piece.source(row) * rank + k) * size;
                bytes.extend_from_slice(&self.data[at..at + size]);
            }
        }
        Ok(self.made(rank, rows, bytes))
    }

    /// `[cols, rows]` of `[rows, cols]`.
    pub(crate) fn transposed(&self) -> Result<Matrix, AdapterError> {
        let (rows, cols) = (self.dim(0)?, self.dim(1)?);
        let size = self.dtype.block_bytes();
        let mut bytes = Vec::with_capacity(self.data.len());
        for col in 0..cols {
            for row in 0..rows {
                bytes.extend_from_slice(&self.data[(row * cols + col) * size..][..size]);
            }
        }
        Ok(self.made(cols, rows, bytes))
    }

    fn made(&self, rows: usize, cols: usize, bytes: Vec<u8>) -> Matrix {
        Matrix::new(self.dtype, rows, cols, bytes.into()).expect("as many bytes as values take")
    }
}

fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    dequantize(dtype, bytes, out).expect("as many bytes as values take");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_into_module_and_field() {
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        let parts = Some(("model.layers.0.self_attn.q_proj", "lora_A.weight"));
        assert_eq!(split(name, "lora_"), parts);
        assert_eq!(split(name, "ia3_"), None);
        assert_eq!(
            split("base_model.vera_A", "vera_"),
            Some(("base_model", "vera_A"))
        );
        assert_eq!(split("lora_A", "lora_"), Some(("", "lora_A")));
    }
}
