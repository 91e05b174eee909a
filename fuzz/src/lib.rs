//! What the targets share: the readers take paths, so the fuzzer's bytes go into a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder of this process, in memory where the system has a place for that.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let path = parent.join(format!("maskwright-fuzz-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for the fuzzer's file");
        path
    })
}

/// Writes the bytes to a file of that name and returns its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("the fuzzer's file");
    path
}
