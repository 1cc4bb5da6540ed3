//! A bundle as one file: the same bytes for the same bundle, on every machine and each time.
//!
//! An archive has what is sealed and nothing else. Data isn't in it: whoever holds a file with key slots can try passphrases
//! on it for ever, and would mail around what `bundle copy` and `data backup` keep together.

use std::io::{self, Write};
use std::path::Path;

use super::archive::ARCHIVE_FOLDER;
use super::frames::{Stored, packed};
use super::read_back::{self, Medium};
use super::{MoveError, MoveSink, Progress, step};
use crate::bundle::{Bundle, MANIFEST_NAME, SIGNATURE_NAME, Verified};
use crate::digest::{CHUNKED_ABOVE_BYTES, Sha256Digest, StreamHasher};
use crate::disk::{self, DiskError, PartialFile};
use crate::manifest::{Entry, FileRole};
use crate::verified::read_pieces;

/// An archive that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest, for whoever gets it.
    pub sha256: Sha256Digest,
    /// How sure it is that it was read back from the medium; `None` where it wasn't read back.
    pub medium: Option<Medium>,
}

/// The most bytes that the archive of a bundle can have.
pub fn archive_bytes_max(bundle: &Bundle<Verified>) -> u64 {
    let files = &bundle.manifest().files;
    let content: u64 = files.iter().map(|entry| entry.size).sum();
    // A header, what fills the last block, and the frame of each file; 3 bytes for each block of 128 KiB.
    content + content / 32_768 + 2048 * (files.len() as u64 + 4) + bundle.manifest_bytes().len() as u64
}

/// Writes the archive of `bundle` to `out`.
///
/// # Errors
/// A file of the bundle that isn't as sealed, and what writing can meet; `out_name` names that.
pub fn export(
    bundle: &Bundle<Verified>,
    out: &mut dyn Write,
    out_name: &Path,
    sink: MoveSink,
) -> Result<ExportReport, MoveError> {
    let mut out = Counted { out, hasher: StreamHasher::new() };
    let failed = |error| MoveError::from(DiskError::new("write", out_name, error));
    let mut head = packed(&mut out).map_err(failed)?;
    for (name, content) in
        [(MANIFEST_NAME, bundle.manifest_bytes()), (SIGNATURE_NAME, bundle.signature_text().as_bytes())]
    {
        head.write_all(&header(name, content.len() as u64)?).map_err(failed)?;
        head.write_all(content).map_err(failed)?;
        head.write_all(filling(content.len() as u64)).map_err(failed)?;
    }
    head.finish().map_err(failed)?;
    // The list is sorted by path.
    for entry in &bundle.manifest().files {
        if entry.role == FileRole::Model && entry.size > CHUNKED_ABOVE_BYTES {
            let mut frame = Stored::new(&mut out).map_err(failed)?;
            write_file(bundle.root(), entry, &mut frame, out_name, sink)?;
            frame.finish().map_err(failed)?;
        } else {
            let mut frame = packed(&mut out).map_err(failed)?;
            write_file(bundle.root(), entry, &mut frame, out_name, sink)?;
            frame.finish().map_err(failed)?;
        }
    }
    let mut end = packed(&mut out).map_err(failed)?;
    end.write_all(&[0; 1024]).map_err(failed)?;
    end.finish().map_err(failed)?;
    out.out.flush().map_err(failed)?;
    let (bytes, sha256, _) = out.hasher.finish();
    Ok(ExportReport { bytes, sha256, medium: None })
}

/// Writes the archive of `bundle` as the new file `file`, and reads it back.
///
/// # Errors
/// What can be known before the first byte: no space, a file system whose files are too small, a file that is there. Then
/// as [`export`], and [`MoveError::NotKept`].
pub fn export_file(bundle: &Bundle<Verified>, file: &Path, sink: MoveSink) -> Result<ExportReport, MoveError> {
    if disk::exists(file) {
        return Err(DiskError::Exists { path: file.into() }.into());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if disk::canonical(folder)?.starts_with(bundle.root()) {
        return Err(MoveError::Inside { folder: file.into() });
    }
    let (needed_bytes, free_bytes) = (archive_bytes_max(bundle), disk::free_bytes(folder)?);
    let bytes_max = disk::file_bytes_max(folder)?;
    if needed_bytes > bytes_max {
        return Err(MoveError::FileTooLarge { path: file.display().to_string(), bytes: needed_bytes, bytes_max });
    }
    if needed_bytes > free_bytes {
        return Err(MoveError::Space { folder: folder.into(), needed_bytes, free_bytes });
    }
    let mut out = PartialFile::create(file)?;
    let mut report = export(bundle, &mut out, file, sink)?;
    out.finish()?;
    disk::forget_blocks(folder);
    let mut medium = Medium::Direct;
    let kept = read_back::digest(file, &mut medium, sink)?;
    if kept != (report.bytes, report.sha256) {
        return Err(MoveError::NotKept { path: file.into() });
    }
    report.medium = Some(medium);
    Ok(report)
}

/// Counts and hashes what is written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    hasher: StreamHasher,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn header(path: &str, bytes: u64) -> Result<[u8; 512], MoveError> {
    let mut header = tar::Header::new_ustar();
    let path = format!("{ARCHIVE_FOLDER}/{path}");
    header.set_path(&path).map_err(|error| DiskError::new("write", Path::new(&path), error))?;
    header.set_size(bytes);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// What fills the last block of a file.
fn filling(bytes: u64) -> &'static [u8] {
    &[0; 512][..((512 - bytes % 512) % 512) as usize]
}

fn write_file(
    root: &Path,
    entry: &Entry,
    out: &mut dyn Write,
    out_name: &Path,
    sink: MoveSink,
) -> Result<(), MoveError> {
    let failed = |error| MoveError::from(DiskError::new("write", out_name, error));
    out.write_all(&header(&entry.path, entry.size)?).map_err(failed)?;
    read_pieces(root, entry, |piece| {
        out.write_all(piece).map_err(failed)?;
        step(sink, Progress::Written(piece.len() as u64))
    })?;
    out.write_all(filling(entry.size)).map_err(failed)
}
