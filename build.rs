//! Tells the tests whether the real models and texts lie next to the repository (`../shared/models`), and whether there is
//! `script`, so that tests that need them show as ignored, not as passed, where they are missing.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(have_shared, have_script)");
    println!("cargo::rerun-if-changed=build.rs");
    // Makes a terminal for a test that needs one; other systems' programs of that name take other arguments.
    if cfg!(target_os = "linux") && Path::new("/usr/bin/script").is_file() {
        println!("cargo::rustc-cfg=have_script");
    }
    let Some(root) = env::var_os("CARGO_MANIFEST_DIR") else {
        return;
    };
    let models = Path::new(&root).join("../shared/models");
    // A missing path counts as changed at every build, which would compile the crate anew each time; so it is watched
    // only where it exists. After adding the folder, touch this file.
    if models.is_dir() {
        println!("cargo::rerun-if-changed={}", models.display());
        println!("cargo::rustc-cfg=have_shared");
    }
}
