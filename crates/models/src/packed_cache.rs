//! Packed weights kept in a folder, so that the next start maps them instead of packing again.
//!
//! A file is named after what it was packed from: the hash of every matrix's type, shape and
//! stored bytes, and of the layout's version. So it serves any checkpoint with the same weights.
//! Hashing reads the whole checkpoint; a note beside the files remembers the hash of a
//! checkpoint's own file by name, size and time of change, by what is packed of it and by the
//! version of Sedge, so that a second start of an unchanged file reads nothing of it. A file
//! that is changed and keeps its size and its time to the nanosecond is taken for unchanged.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use blake3::{Hash, Hasher};
use bytes::Bytes;
use sedge_formats::replace;
use sedge_kernels::{Matrix, PACKED_VERSION, Packer, Team};

use crate::Model;

/// Bytes that one thread hashes at a time.
const PIECE: usize = 4 << 20;

/// What a file of packed weights begins with; the weights follow, to its end.
const HEADER: usize = 4096;
const MAGIC: &[u8; 8] = b"sedgepk1";

/// A folder of packed weights.
#[derive(Debug, Clone)]
pub struct PackedCache {
    folder: PathBuf,
}

/// How a model came by its packed weights.
#[derive(Debug)]
pub enum Cached {
    /// Mapped from the folder.
    Found,
    /// Packed, and written to the folder.
    Written,
    /// Packed; they could not be written.
    NotWritten(io::Error),
}

impl PackedCache {
    /// A cache in a folder, which is made when it is first written to.
    pub fn new(folder: PathBuf) -> PackedCache {
        PackedCache { folder }
    }

    /// Packs a model as [`Model::pack`] does, or maps what has been packed before. `file` is the
    /// checkpoint's own file, if it is one file.
    ///
    /// # Errors
    /// When the memory to pack into cannot be had; the model still runs then. That something
    /// cannot be written is no error.
    pub fn pack(&self, model: &mut Model, team: &Team, file: Option<&Path>) -> io::Result<Cached> {
        let packer = model.packer();
        let note = file.and_then(|file| self.note(file, &packer));
        let noted = note.as_deref().and_then(read_note);
        let hash = noted.unwrap_or_else(|| hash(&packer, team));
        let path = self.folder.join(format!("{hash}.packed"));
        let packer = match map(&path, &hash) {
            Some(memory) => match packer.adopt(memory) {
                Ok(_) => {
                    if noted.is_none() {
                        // Not kept: hashing again next time is slower, not wrong.
                        let _ = self.keep_note(note.as_deref(), &hash);
                    }
                    return Ok(Cached::Found);
                }
                Err(_) => model.packer(),
            },
            None => packer,
        };
        // A note may be of a file that was changed and given its old time back.
        let hash = match noted {
            Some(_) => self::hash(&packer, team),
            None => hash,
        };
        let memory = packer.pack(team, &mut |stored| sedge_formats::release(&stored))?;
        let path = self.folder.join(format!("{hash}.packed"));
        let written =
            write(&path, &hash, &memory).and_then(|()| self.keep_note(note.as_deref(), &hash));
        Ok(match written {
            Ok(()) => Cached::Written,
            Err(error) => Cached::NotWritten(error),
        })
    }

    /// Where the hash of a file's weights is noted, named after the file as it is now.
    fn note(&self, file: &Path, packer: &Packer<'_>) -> Option<PathBuf> {
        let facts = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
        let changed = facts.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let path = file.canonicalize().ok()?;
        let mut name = Hasher::new();
        name.update(path.as_os_str().as_encoded_bytes());
        name.update(&[0]);
        name.update(&facts.len().to_le_bytes());
        name.update(&changed.as_nanos().to_le_bytes());
        name.update(env!("CARGO_PKG_VERSION").as_bytes());
        start(&mut name);
        packer.stored().for_each(|w| describe(w, &mut name));
        Some(self.folder.join(format!("{}.note", name.finalize())))
    }

    fn keep_note(&self, note: Option<&Path>, hash: &Hash) -> io::Result<()> {
        let Some(note) = note else { return Ok(()) };
        replace(note, |file| file.write_all(hash.to_hex().as_bytes()))
    }
}

fn read_note(note: &Path) -> Option<Hash> {
    Hash::from_hex(fs::read(note).ok()?).ok()
}

/// What every hash begins with.
fn start(hasher: &mut Hasher) {
    hasher.update(MAGIC).update(&PACKED_VERSION.to_le_bytes());
}

/// A matrix without its values.
fn describe(w: &Matrix, hasher: &mut Hasher) {
    hasher.update(w.dtype().name().as_bytes());
    hasher.update(&(w.rows() as u64).to_le_bytes());
    hasher.update(&(w.cols() as u64).to_le_bytes());
}

/// The hash of what is packed: of its pieces' hashes, which the team computes side by side.
fn hash(packer: &Packer<'_>, team: &Team) -> Hash {
    let mut all = Hasher::new();
    start(&mut all);
    for w in packer.stored() {
        describe(w, &mut all);
        let bytes = w.bytes();
        // A few pieces at a time, whose memory is given back before more is read.
        for part in (0..bytes.len()).step_by(PIECE * 4 * team.threads()) {
            let part = bytes.slice(part..bytes.len().min(part + PIECE * 4 * team.threads()));
            let pieces: Vec<&[u8]> = part.chunks(PIECE).collect();
            let hashes: Vec<Mutex<Option<Hash>>> =
                pieces.iter().map(|_| Mutex::default()).collect();
            team.run(pieces.len(), &|i| {
                let hash = blake3::hash(pieces[i]);
                *hashes[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(hash);
            });
            for hash in hashes {
                let hash = hash.into_inner().unwrap_or_else(|e| e.into_inner());
                all.update(hash.expect("every task has run").as_bytes());
            }
            sedge_formats::release(&part);
        }
    }
    all.finalize()
}

/// The packed weights of a file that is whole and of that hash.
fn map(path: &Path, hash: &Hash) -> Option<Bytes> {
    let bytes = sedge_formats::map(path).ok()?;
    let header = bytes.get(..HEADER)?;
    let fits = header[..8] == *MAGIC
        && header[8..40] == *hash.as_bytes()
        && header[40..48] == (bytes.len() as u64).to_le_bytes();
    fits.then(|| bytes.slice(HEADER..))
}

fn write(path: &Path, hash: &Hash, packed: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..40].copy_from_slice(hash.as_bytes());
    header[40..48].copy_from_slice(&((HEADER + packed.len()) as u64).to_le_bytes());
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    replace(path, |file| {
        file.write_all(&header)?;
        file.write_all(packed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{open, synth};

    /// A small model in a folder of its own, and its file.
    fn model() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        synth("seedling", crate::Mixture::Q4KM, 1, &file, &mut |_| {}).unwrap();
        (dir, file)
    }

    fn pack(cache: &PackedCache, file: &Path) -> (Cached, Vec<u8>) {
        let mut opened = open(file).unwrap();
        let cached = cache
            .pack(&mut opened.model, &Team::new(2), Some(file))
            .unwrap();
        let mut row = vec![0.0; 8];
        let Model::Decoder(decoder) = &opened.model else {
            unreachable!("the model is a decoder")
        };
        row.resize(decoder.config().hidden, 0.0);
        decoder.embedding(7, &mut row);
        (cached, row.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    #[test]
    fn the_second_start_maps_what_the_first_has_packed() {
        let (dir, file) = model();
        let cache = PackedCache::new(dir.path().join("cache/deep"));
        let (first, row) = pack(&cache, &file);
        assert!(matches!(first, Cached::Written), "{first:?}");
        let (second, same) = pack(&cache, &file);
        assert!(matches!(second, Cached::Found), "{second:?}");
        assert_eq!(row, same);

        // A copy has no note, but the same weights.
        let copy = dir.path().join("copy.gguf");
        fs::copy(&file, &copy).unwrap();
        let (copied, same) = pack(&cache, &copy);
        assert!(matches!(copied, Cached::Found), "{copied:?}");
        assert_eq!(row, same);
    }

    #[test]
    fn what_is_cut_short_or_of_other_weights_is_packed_again() {
        let (dir, file) = model();
        let folder = dir.path().join("cache");
        let cache = PackedCache::new(folder.clone());
        let (_, row) = pack(&cache, &file);
        let packed = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
        let packed = packed.filter(|p| p.extension().is_some_and(|e| e == "packed"));
        let packed = packed.into_iter().next().unwrap();
        let bytes = fs::read(&packed).unwrap();
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..HEADER], &[]] {
            fs::write(&packed, damaged).unwrap();
            let (again, same) = pack(&cache, &file);
            assert!(matches!(again, Cached::Written), "{again:?}");
            assert_eq!(row, same);
            assert_eq!(fs::read(&packed).unwrap(), bytes);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_the_cache() {
        let (dir, file) = model();
        let blocked = dir.path().join("a file");
        fs::write(&blocked, "").unwrap();
        let (cached, row) = pack(&PackedCache::new(blocked.join("cache")), &file);
        assert!(matches!(cached, Cached::NotWritten(_)), "{cached:?}");
        let (_, same) = pack(&PackedCache::new(dir.path().join("cache")), &file);
        assert_eq!(row, same);
    }
}
