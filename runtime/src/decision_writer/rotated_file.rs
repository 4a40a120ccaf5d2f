//! A file of lines with a bound: when half of the bound is reached, the file becomes its own predecessor (`NAME.1`), in place
//! of the one before, and a new one begins.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// How much of an existing file is looked at for the end of its last whole line.
const TAIL: u64 = 64 << 20;

/// The file that is written now.
#[derive(Debug)]
pub(crate) struct RotatedFile {
    path: PathBuf,
    predecessor: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    /// Most bytes of one file: half of those of both together.
    most: u64,
}

impl RotatedFile {
    /// Opens a file to append to. It and its predecessor have at most `most_bytes` together, a longer line aside. A line that
    /// an earlier process left unfinished is cut off.
    ///
    /// # Errors
    /// The file cannot be opened, or another process writes it.
    pub(crate) fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        let mut file = open_locked(path)?;
        let bytes = whole_lines(&mut file)?;
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        let mut predecessor = path.as_os_str().to_owned();
        predecessor.push(".1");
        Ok(Self {
            path: path.to_owned(),
            predecessor: predecessor.into(),
            file: BufWriter::new(file),
            bytes,
            most: most_bytes / 2,
        })
    }

    /// Appends a line, which ends with a newline.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.most {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes += length;
        Ok(())
    }

    /// Hands all lines to the operating system.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.path, &self.predecessor)?;
        self.file = BufWriter::new(open_locked(&self.path)?);
        self.bytes = 0;
        Ok(())
    }
}

/// Two writers of one file would mix their lines.
fn open_locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another process writes this file")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The length of a file up to the end of its last whole line.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let begin = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(begin, |end| begin + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn both_files_together_stay_within_the_bound_and_keep_the_latest_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let mut file = RotatedFile::open(&path, 40).unwrap();
        for line in 0..25 {
            file.write_line(format!("{line:04}\n").as_bytes()).unwrap();
        }
        file.flush().unwrap();
        let previous = folder.path().join("d.jsonl.1");
        assert_eq!(text(&path), "0024\n");
        assert_eq!(text(&previous), "0020\n0021\n0022\n0023\n");
        // A line longer than the bound has a file of its own.
        let long = format!("{}\n", "x".repeat(100));
        file.write_line(long.as_bytes()).unwrap();
        file.write_line(b"next\n").unwrap();
        file.flush().unwrap();
        assert_eq!((text(&path), text(&previous)), ("next\n".into(), long));
    }

    #[test]
    fn an_unfinished_line_is_cut_off_and_one_process_writes_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs::write(&path, "whole\nunfini").unwrap();
        let mut file = RotatedFile::open(&path, 1_000).unwrap();
        file.write_line(b"next\n").unwrap();
        file.flush().unwrap();
        assert_eq!(text(&path), "whole\nnext\n");
        let refused = RotatedFile::open(&path, 1_000).unwrap_err();
        assert!(refused.to_string().contains("another process"), "{refused}");
        drop(file);
        assert!(RotatedFile::open(&path, 1_000).is_ok());
    }
}
