//! Models as archives: written the same each time, and read by a loop that knows only files and folders.
//!
//! The `tar` crate would follow long names, links and sparse files on an archive's word, and skips a `..` without a word;
//! here each header is looked at as it is, and anything but a plain file in one folder is refused.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::description::{DESCRIPTION_BYTES_MAX, DESCRIPTION_NAME, Description, FILES_MAX};
use super::import::check_space;
use super::verification::Meter;
use super::{LibraryError, ModelEntry};
use crate::disk::{self, DiskError, FAT32_FILE_BYTES_MAX, PartialFile};
use crate::manifest::path::check_below;
use crate::model_folder::{ModelFolderWriter, ProgressSink, Step};
use crate::verified::VerifiedFile;

/// The most bytes that the files of an archive may have together: 1 TiB.
pub const ARCHIVE_BYTES_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// How strongly `.tar.zst` is packed; quantised weights don't get smaller with more.
const ZSTD_LEVEL: i32 = 3;
/// The largest window, as a power of two, that unpacking may need: 128 MiB of memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// How many bytes are read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// An archive that has been looked through.
pub(super) struct ArchiveSource {
    path: PathBuf,
    /// Its files but `model.toml`, with their sizes in bytes.
    pub(super) files: Vec<(String, u64)>,
}

/// Writes a model as `<name>/<file>` for each of its files, sorted, without times and owners.
pub(super) fn export(model: &ModelEntry, file: &Path, sink: ProgressSink) -> Result<(), LibraryError> {
    let lower = file.to_string_lossy().to_ascii_lowercase();
    let is_packed = lower.ends_with(".tar.zst");
    if !is_packed && !lower.ends_with(".tar") {
        return Err(LibraryError::source_refused(file, "an export's name ends in `.tar` or `.tar.zst`"));
    }
    if disk::exists(file) {
        return Err(DiskError::Exists { path: file.into() }.into());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tar_bytes = model.size_bytes().saturating_add(1024 * (model.entries().len() as u64 + 20));
    check_space(tar_bytes, disk::free_bytes(folder)?)?;
    let mut meter = Meter { step: Step::Writing, done_bytes: 0, total_bytes: model.size_bytes(), sink };
    let mut out = Output { file: PartialFile::create(file)?, failed: None };
    let written =
        if is_packed { write_packed(model, &mut out, &mut meter) } else { write_tar(model, &mut out, &mut meter) };
    // What the drive said is more to the point than what the packer made of it.
    if let Some(error) = out.failed.take() {
        return Err(error.into());
    }
    written?;
    Ok(out.file.finish()?)
}

/// Hands bytes to the file and keeps the error that it gave.
struct Output {
    file: PartialFile,
    failed: Option<DiskError>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let text = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(text))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> LibraryError + '_ {
    move |error| DiskError::new("write", path, error).into()
}

fn write_packed(model: &ModelEntry, out: &mut Output, meter: &mut Meter) -> Result<(), LibraryError> {
    let failed = failed(model.folder.as_path());
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL).map_err(&failed)?;
    encoder.include_checksum(true).map_err(&failed)?;
    write_tar(model, &mut encoder, meter)?;
    encoder.finish().map_err(&failed)?;
    Ok(())
}

fn write_tar(model: &ModelEntry, out: &mut dyn Write, meter: &mut Meter) -> Result<(), LibraryError> {
    let failed = failed(model.folder.as_path());
    let mut entries = model.entries().to_vec();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut chunk = Vec::new();
    for entry in &entries {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("{}/{}", model.name(), entry.path)).map_err(&failed)?;
        header.set_size(entry.size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        out.write_all(header.as_bytes()).map_err(&failed)?;
        let file = VerifiedFile::open(&model.folder, entry)?;
        for chunk_idx in 0..file.chunk_count() {
            chunk.resize(file.chunk_len(chunk_idx), 0);
            file.read_chunk(chunk_idx, &mut chunk)?;
            out.write_all(&chunk).map_err(&failed)?;
            meter.add(chunk.len() as u64)?;
        }
        let rest = (512 - entry.size % 512) % 512;
        out.write_all(&[0; 512][..rest as usize]).map_err(&failed)?;
    }
    out.write_all(&[0; 1024]).map_err(&failed)
}

/// Looks through an archive: its files, and what its `model.toml` says.
pub(super) fn examine(path: &Path, sink: ProgressSink) -> Result<(ArchiveSource, Description), LibraryError> {
    let refused = |what: String| LibraryError::source_refused(path, what);
    let (_, size) = disk::open(path)?;
    let mut meter = Meter { step: Step::Examining, done_bytes: 0, total_bytes: size, sink };
    let mut files: Vec<(String, u64)> = Vec::new();
    let mut description = None;
    walk(path, &mut |name, bytes, content| {
        if name == DESCRIPTION_NAME {
            if bytes > DESCRIPTION_BYTES_MAX {
                return Err(refused(format!("its `{DESCRIPTION_NAME}` has {bytes} bytes")));
            }
            let mut text = String::new();
            content.read_to_string(&mut text).map_err(|error| refused(error.to_string()))?;
            description = Some(Description::parse(&text).map_err(|what| refused(format!("its model.toml: {what}")))?);
        } else {
            files.push((name.into(), bytes));
        }
        skip(content, |read_bytes| {
            meter.done_bytes = read_bytes.saturating_sub(1);
            meter.add(1)
        })
    })?;
    let description = description.ok_or_else(|| refused(format!("it has no `{DESCRIPTION_NAME}`")))?;
    let mut promised: Vec<(String, u64)> = description.files.iter().map(|e| (e.path.clone(), e.size)).collect();
    promised.sort();
    files.sort();
    if promised != files {
        let differs = |(name, _): &&(String, u64)| !promised.iter().any(|known| known.0 == *name);
        let what = match files.iter().find(differs) {
            Some((name, _)) => format!("`{name}` isn't listed in its `{DESCRIPTION_NAME}`"),
            None => format!("files that its `{DESCRIPTION_NAME}` lists are missing or have another size"),
        };
        return Err(refused(what));
    }
    Ok((ArchiveSource { path: path.into(), files }, description))
}

/// Writes the archive's files but `model.toml`, which is made again.
pub(super) fn extract(archive: &ArchiveSource, writer: &mut ModelFolderWriter) -> Result<(), LibraryError> {
    let mut piece = vec![0; PIECE_BYTES];
    walk(&archive.path, &mut |name, _, content| {
        if name == DESCRIPTION_NAME {
            return skip(content, |_| Ok(()));
        }
        writer.begin(name)?;
        loop {
            let bytes = content.read(&mut piece).map_err(|error| broken(&archive.path, &error))?;
            if bytes == 0 {
                return Ok(writer.end()?);
            }
            writer.write(&piece[..bytes])?;
        }
    })
}

fn broken(path: &Path, error: &io::Error) -> LibraryError {
    LibraryError::source_refused(path, format!("it is damaged: {error}"))
}

/// The content of one file of an archive: exactly as many bytes as its header says.
struct Content<'a> {
    stream: &'a mut dyn Read,
    left: u64,
    read: Rc<Cell<u64>>,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let bytes = self.stream.read(&mut buffer[..room])?;
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a file"));
        }
        self.left -= bytes as u64;
        Ok(bytes)
    }
}

/// Reads what is left of a file; `each` is told how many bytes of the archive have been read.
fn skip(content: &mut Content, mut each: impl FnMut(u64) -> Result<(), LibraryError>) -> Result<(), LibraryError> {
    let mut piece = vec![0; PIECE_BYTES];
    let damaged = |error: io::Error| LibraryError::source_refused(Path::new("the archive"), error.to_string());
    while content.left > 0 {
        content.read(&mut piece).map_err(damaged)?;
        each(content.read.get())?;
    }
    Ok(())
}

/// Counts the bytes of the archive that have been read.
struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.read.set(self.read.get() + bytes as u64);
        Ok(bytes)
    }
}

/// Calls `visit` for each file with its name, its size and its content, all of which it must read.
fn walk(
    path: &Path,
    visit: &mut dyn FnMut(&str, u64, &mut Content) -> Result<(), LibraryError>,
) -> Result<(), LibraryError> {
    let refused = |what: String| LibraryError::source_refused(path, what);
    let (file, _) = disk::open(path)?;
    let read = Rc::new(Cell::new(0));
    let file = io::BufReader::with_capacity(PIECE_BYTES, Counted { inner: file, read: Rc::clone(&read) });
    let is_packed = path.to_string_lossy().to_ascii_lowercase().ends_with(".zst");
    let mut stream: Box<dyn Read> = if is_packed {
        let mut decoder = zstd::Decoder::with_buffer(file).map_err(|error| broken(path, &error))?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| broken(path, &error))?;
        Box::new(decoder)
    } else {
        Box::new(file)
    };
    let mut folder: Option<String> = None;
    let mut names = std::collections::BTreeSet::new();
    let mut total_bytes = 0u64;
    // Each file may come with its folder's header; more than that is no export.
    for _ in 0..2 * FILES_MAX {
        let mut block = [0; 512];
        stream.read_exact(&mut block).map_err(|error| broken(path, &error))?;
        if block == [0; 512] {
            return Ok(());
        }
        let Member { top, name, bytes } = member(&block).map_err(refused)?;
        if *folder.get_or_insert_with(|| top.clone()) != top {
            return Err(refused(format!("`{top}` is a second folder in it")));
        }
        let Some(name) = name else { continue };
        total_bytes = total_bytes.saturating_add(bytes);
        if bytes > FAT32_FILE_BYTES_MAX || total_bytes > ARCHIVE_BYTES_MAX {
            return Err(refused(format!("`{name}` has {bytes} bytes, more than allowed")));
        }
        if names.len() == FILES_MAX || !names.insert(name.to_ascii_lowercase()) {
            return Err(refused(format!("`{name}` is there twice, or there are more than {FILES_MAX} files")));
        }
        let mut content = Content { stream: &mut stream, left: bytes, read: Rc::clone(&read) };
        visit(&name, bytes, &mut content)?;
        if content.left > 0 {
            return Err(refused(format!("`{name}` wasn't read to its end")));
        }
        let rest = (512 - bytes % 512) % 512;
        stream.read_exact(&mut [0; 512][..rest as usize]).map_err(|error| broken(path, &error))?;
    }
    Err(refused("it has too many entries".into()))
}

/// What a header says: a file in a folder, or, without a name, the folder.
struct Member {
    top: String,
    name: Option<String>,
    bytes: u64,
}

fn member(block: &[u8; 512]) -> Result<Member, String> {
    let header = tar::Header::from_byte_slice(block);
    // The sum of all bytes, those of the sum itself counted as spaces.
    let sum: u32 =
        block.iter().enumerate().map(|(i, &byte)| u32::from(if (148..156).contains(&i) { b' ' } else { byte })).sum();
    if header.cksum().ok() != Some(sum) {
        return Err("a header of it is damaged".into());
    }
    let path = header.path_bytes();
    let shown: String = String::from_utf8_lossy(&path).chars().filter(|c| !c.is_control()).take(200).collect();
    let path = std::str::from_utf8(&path).map_err(|_| format!("`{shown}` isn't UTF-8"))?;
    let kind = header.entry_type();
    let is_folder = kind == tar::EntryType::Directory;
    if !is_folder && kind != tar::EntryType::Regular {
        return Err(format!("`{shown}` is neither a file nor a folder"));
    }
    let path = if is_folder { path.strip_suffix('/').unwrap_or(path) } else { path };
    check_below(path).map_err(|error| error.to_string())?;
    let bytes = header.entry_size().map_err(|_| format!("the size of `{shown}` is damaged"))?;
    match (is_folder, path.split_once('/')) {
        (true, None) if bytes == 0 => Ok(Member { top: path.into(), name: None, bytes }),
        (false, Some((top, name))) if !name.contains('/') => {
            Ok(Member { top: top.into(), name: Some(name.into()), bytes })
        }
        _ => Err(format!("`{shown}` isn't a file in the model's folder")),
    }
}
