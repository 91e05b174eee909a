use super::*;
use serde_json::json;

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("maskwright-folder-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn an_error_before_the_first_result_leaves_nothing() {
    let root = scratch("nothing");
    let path = root.join("a").join("b");
    let folder = RunFolder::create(&path).unwrap();
    fs::write(folder.paths().manifest(), "{}").unwrap();
    fs::create_dir(folder.paths().blocks()).unwrap();
    assert!(folder.paths().lock().exists());
    drop(folder);
    assert!(!root.exists(), "parents that were made for it go, too");
    // One that was there stays.
    fs::create_dir_all(&path).unwrap();
    drop(RunFolder::create(&path).unwrap());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    let mut folder = RunFolder::create(&path).unwrap();
    folder.metric(&json!({"step": 0})).unwrap();
    drop(folder);
    assert!(RunPaths::new(&path).metrics().exists() && !RunPaths::new(&path).lock().exists());
    assert!(matches!(RunFolder::create(&path), Err(FolderError::Exists { .. })));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn one_at_a_time() {
    let path = scratch("one");
    let folder = RunFolder::create(&path).unwrap();
    let refused = RunFolder::create(&path).err().unwrap().to_string();
    let owner = format!("process {} on ", std::process::id());
    assert!(refused.contains("is being written by") && refused.contains(&owner), "{refused}");
    // A file that a killed process left is no lock.
    drop(folder);
    fs::create_dir_all(&path).unwrap();
    fs::write(RunPaths::new(&path).lock(), "process 1 on elsewhere\n").unwrap();
    drop(RunFolder::create(&path).unwrap());
    fs::remove_dir_all(&path).ok();
}

#[test]
fn a_resumed_run_moves_aside_what_it_does_not_go_on_with() {
    let path = scratch("aside");
    let paths = RunPaths::new(&path);
    let mut folder = RunFolder::create(&path).unwrap();
    for step in 0..3 {
        folder.metric(&json!({"stage": 1, "block": 0, "step": step, "loss": 1.0})).unwrap();
    }
    assert!(matches!(Unfinished::open(&path), Err(FolderError::NoRun { .. })), "no manifest: no run");
    fs::write(paths.manifest(), "{}").unwrap();
    assert!(matches!(Unfinished::open(&path), Err(FolderError::Locked { .. })));
    fs::create_dir(paths.model()).unwrap();
    fs::write(paths.model().join("mine"), "a user's").unwrap();
    drop(folder);
    // Opening alone changes nothing.
    drop(Unfinished::open(&path).unwrap());
    assert!(paths.model().join("mine").exists() && !paths.earlier().exists());
    let (mut folder, earlier) = Unfinished::open(&path).unwrap().go_on().unwrap();
    assert_eq!(earlier.len(), 3);
    folder.metric(&json!({"stage": 1, "block": 0, "step": 2, "loss": 2.0})).unwrap();
    drop(folder);
    let aside = RunPaths::new(paths.earlier().join("1"));
    assert!(aside.model().join("mine").exists() && aside.metrics().exists() && !paths.model().exists());
    // Steps that were told before the run was killed twice are still known, each as it was told last.
    let (folder, earlier) = Unfinished::open(&path).unwrap().go_on().unwrap();
    let losses: Vec<f64> = earlier.iter().filter_map(|l| l["loss"].as_f64()).collect();
    assert_eq!(losses, [1.0, 1.0, 2.0]);
    drop(folder);
    fs::write(paths.run(), "{}").unwrap();
    assert!(matches!(Unfinished::open(&path), Err(FolderError::NoRun { .. })));
    fs::remove_dir_all(path).unwrap();
}

/// Of a hundred that start at the same moment exactly one has the folder, and nothing of a run is left once it gives it up. The folder
/// itself may stay, empty: one that came too late may have been the one that made it.
#[test]
fn a_hundred_starts_at_once() {
    let path = scratch("hundred").join("run");
    let (start, end) = (std::sync::Barrier::new(100), std::sync::Barrier::new(100));
    let ends: Vec<bool> = std::thread::scope(|scope| {
        let one = || {
            start.wait();
            let had = RunFolder::create(&path);
            // All have tried before the winner ends.
            end.wait();
            if let Err(e) = &had {
                assert!(matches!(e, FolderError::Locked { .. }), "{e}");
            }
            had.is_ok()
        };
        let all: Vec<_> = (0..100).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ends.iter().filter(|had| **had).count(), 1);
    assert!(fs::read_dir(&path).map_or(true, |mut left| left.next().is_none()));
    drop(RunFolder::create(&path).unwrap());
    fs::remove_dir_all(path.parent().unwrap()).ok();
}
