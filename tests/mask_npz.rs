//! MaskLLM's mask file: what is written is what numpy writes, and what is read is held against the model.

mod host_fixture;

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use host_fixture::{Scratch, masks, mentions, model};
use maskwright::mask::{BitMask, MaskFile, MaskSet, Pattern, npz};
use maskwright::model::{Architecture, Checkpoint, PlaceInTensor, Projection, ProjectionKind};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Names and bytes of a zip file's members.
type Members = Vec<(String, Vec<u8>)>;

/// A numpy array of bytes.
fn npy(data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}\n", data.len());
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

/// A zip file of these members.
fn zipped(members: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Names and inflated bytes.
fn members(bytes: &[u8]) -> Members {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let count = archive.len();
    let read = |i| {
        let mut member = archive.by_index(i).unwrap();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        (member.name().unwrap().into_owned(), bytes)
    };
    (0..count).map(read).collect()
}

fn projection(name: &str, rows: usize, cols: usize) -> Projection {
    let place = PlaceInTensor::whole("mlp.up_proj");
    Projection {
        name: name.into(),
        stored: name.into(),
        place,
        block: 0,
        kind: ProjectionKind::Up,
        rows,
        cols,
    }
}

struct Setup {
    dir: Scratch,
    config: Architecture,
    set: MaskSet,
}

impl Setup {
    fn new(pattern: &str) -> Self {
        let dir = Scratch::new();
        let config = model(dir.path());
        let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
        let set = masks(&checkpoint, &config, pattern.parse().unwrap());
        Self { dir, config, set }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.join("mask.npz")
    }

    /// The members of a good file.
    fn good(&self) -> Members {
        let member =
            |(name, mask): (&String, &BitMask)| (format!("{name}.mask.npy"), npy(&npz::packbits(mask)));
        self.set.masks.iter().map(member).collect()
    }

    fn open(&self, bytes: &[u8], pattern: Option<Pattern>) -> Result<MaskFile, String> {
        fs::write(self.path(), bytes).unwrap();
        MaskFile::open(&self.path(), &self.config.projections(), pattern).map_err(|e| e.to_string())
    }
}

#[test]
fn files_come_back_as_written() {
    for pattern in ["2:4", "1:2", "4:8", "1:4", "2:8"] {
        let mut setup = Setup::new(pattern);
        // A projection without a mask, and rows that are no whole bytes.
        setup.set.masks.remove("model.layers.1.mlp.up_proj.weight");
        npz::write(&setup.set, &setup.config.projections(), &setup.path()).unwrap();
        let file = MaskFile::open(&setup.path(), &setup.config.projections(), None).unwrap();
        assert_eq!(file.set, setup.set);
        assert!(file.sources.is_empty());
        let once = fs::read(setup.path()).unwrap();
        npz::write(&setup.set, &setup.config.projections(), &setup.path()).unwrap();
        assert_eq!(fs::read(setup.path()).unwrap(), once);
        // The order of the model, as the writer was given it.
        let names: Vec<_> = members(&once).into_iter().map(|(name, _)| name).collect();
        let expected = setup.config.projections().into_iter().map(|p| format!("{}.mask.npy", p.name));
        assert_eq!(names, expected.collect::<Vec<_>>());
        // Nothing compressed: numpy.savez.
        let stored = zipped(&members(&once), CompressionMethod::Stored);
        assert_eq!(setup.open(&stored, None).unwrap().set, setup.set);
        assert_eq!(setup.open(&stored, Some(setup.set.pattern)).unwrap().set, setup.set);
    }
}

#[test]
fn odd_widths_are_packed_without_gaps() {
    for (rows, cols) in [(3, 20), (5, 4), (1, 2), (7, 36), (2, 64), (3, 100)] {
        let pattern = Pattern::new(1, 2).unwrap();
        let mask = BitMask::top_n(rows, cols, pattern, |r, scores| {
            scores.iter_mut().enumerate().for_each(|(c, s)| *s = ((c * 7 + r * 13) % 11) as f32);
        })
        .unwrap();
        let bytes = npz::packbits(&mask);
        let bit = |i: usize| bytes[i / 8] >> (7 - i % 8) & 1 == 1;
        assert!((0..rows * cols).all(|i| bit(i) == mask.get(i / cols, i % cols)), "{rows} x {cols}");
        assert_eq!(bytes.len(), (rows * cols).div_ceil(8));
        assert_eq!(npz::unpackbits(rows, cols, &bytes).unwrap(), mask);
        let mut wrong = bytes.clone();
        *wrong.last_mut().unwrap() |= 1;
        assert_eq!(npz::unpackbits(rows, cols, &wrong).is_err(), !(rows * cols).is_multiple_of(8));
        assert!(npz::unpackbits(rows, cols, &bytes[1..]).is_err());
    }
    assert!(npz::unpackbits(usize::MAX, 4, &[]).is_err());
    assert!(npz::unpackbits(0, 4, &[]).is_err());
}

#[test]
fn each_fault_has_one_clear_error() {
    let setup = Setup::new("2:4");
    let up = "model.layers.1.mlp.up_proj.weight";
    let at = setup.good().iter().position(|(name, _)| name.starts_with(up)).unwrap();
    let wrong = |change: &dyn Fn(&mut Members), pattern: Option<&str>, parts: &[&str]| {
        let mut all = setup.good();
        change(&mut all);
        let bytes = zipped(&all, CompressionMethod::Deflated);
        let error = setup.open(&bytes, pattern.map(|p| p.parse().unwrap())).unwrap_err();
        mentions(&error, parts);
    };
    wrong(&|all| all[at].0 = "lm_head.weight.mask.npy".into(), None, &["lm_head.weight", "no projection"]);
    wrong(&|all| all[at].0 = up.into(), None, &["mask.npz", up, "does not end in .mask.npy"]);
    wrong(&|all| drop(all.remove(at)), None, &["mask.npz", up, "1 of 14", "mask of ones"]);
    wrong(&|all| all.clear(), None, &["14 of 14"]);
    wrong(&|all| all[at].1 = npy(&[0; 47]), None, &[up, "24 x 16 takes 48 bytes", "has 47"]);
    wrong(&|all| all[at].1 = npy(&[0; 1 << 20]), None, &[up, "takes 48 bytes"]);
    wrong(&|all| all[at].1.truncate(100), None, &[up, "48 bytes", "belongs to another model"]);
    wrong(&|all| all[at].1.push(0), None, &[up, "48 bytes", "has 49"]);
    wrong(&|all| all[at].1 = b"x".to_vec(), None, &[up, "header cannot be read"]);
    wrong(&|all| all[at].1 = vec![7; 200], None, &[up, "no numpy array"]);
    // One bit more in group 2 of row 3.
    let loose = |all: &mut Members| {
        let byte = all[at].1.len() - 48 + 3 * 2 + 1;
        all[at].1[byte] |= 0xf0;
    };
    wrong(&loose, Some("2:4"), &["mask.npz", up, "group 2 of row 3 keeps 4 weights", "2:4"]);
    wrong(&loose, None, &["mask.npz", up, "2 to 4 of every 4", "no pattern N:M in common"]);
    wrong(&|_| (), Some("1:4"), &["keeps 2 weights", "1:4"]);
    wrong(&|_| (), Some("4:16"), &["do not divide into groups of 16"]);
    let ones = |all: &mut Members| {
        for (name, bytes) in all {
            let name = name.strip_suffix(".mask.npy").unwrap();
            let mask = &setup.set.masks[name];
            *bytes = npy(&npz::packbits(&BitMask::ones(mask.rows(), mask.cols())));
        }
    };
    wrong(&ones, None, &["prunes nothing"]);

    // Damage of the container, and a size that lies.
    let good = zipped(&setup.good(), CompressionMethod::Deflated);
    mentions(&setup.open(&good[..good.len() / 2], None).unwrap_err(), &["mask.npz", "no whole zip file"]);
    mentions(&setup.open(b"PK\x03\x04", None).unwrap_err(), &["no whole zip file"]);
    let size = (setup.good()[0].1.len() as u32).to_le_bytes();
    for lie in [u32::MAX - 1, 10] {
        let mut bytes = good.clone();
        while let Some(place) = bytes.windows(4).position(|w| w == size) {
            bytes[place..place + 4].copy_from_slice(&lie.to_le_bytes());
        }
        assert!(setup.open(&bytes, None).is_err());
    }
    let mut flipped = 0;
    for i in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[i] ^= 1 << (i % 8);
        match setup.open(&bytes, None) {
            Ok(file) => assert_eq!(file.set, setup.set, "byte {i}"),
            Err(_) => flipped += 1,
        }
    }
    assert!(flipped > good.len() / 9, "{flipped} of {}", good.len());
}

/// A member that inflates to gigabytes is not inflated.
#[test]
fn a_bomb_is_not_inflated() {
    let setup = Setup::new("2:4");
    let mut all = setup.good();
    all[0].1 = npy(&vec![0; 64 << 20]);
    let bytes = zipped(&all, CompressionMethod::Deflated);
    mentions(&setup.open(&bytes, None).unwrap_err(), &["it has 671"]);
    // The same, with a declared size that is right.
    let real = (all[0].1.len() as u32).to_le_bytes();
    let declared = (setup.good()[0].1.len() as u32).to_le_bytes();
    let mut bytes = bytes;
    while let Some(place) = bytes.windows(4).position(|w| w == real) {
        bytes[place..place + 4].copy_from_slice(&declared);
    }
    let error = setup.open(&bytes, None).unwrap_err();
    mentions(&error, &["down_proj", "it has 67108864"]);
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn the_reference_file_is_written_and_read() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors/mask");
    let reference = fs::read(vectors.join("maskllm_style.npz")).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(vectors.join("masks.json")).unwrap()).unwrap();
    // The two cases of masks.json, in the order of the generator.
    let mut set = MaskSet::new(Pattern::TWO_OF_FOUR);
    let mut projections = Vec::new();
    let names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"];
    for (case, name) in json["cases"].as_array().unwrap().iter().zip(names) {
        let rows: Vec<&str> =
            case["mask_rows"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        let mut mask = BitMask::zeros(rows.len(), rows[0].len());
        for (r, row) in rows.iter().enumerate() {
            row.bytes().enumerate().for_each(|(c, bit)| mask.set(r, c, bit == b'1'));
        }
        let hex: String = npz::packbits(&mask).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, case["numpy_packbits_flat_big_hex"].as_str().unwrap());
        projections.push(projection(name, mask.rows(), mask.cols()));
        set.masks.insert(name.into(), mask);
    }
    let dir = Scratch::new();
    let path = dir.join("ours.npz");
    npz::write(&set, &projections, &path).unwrap();
    let ours = fs::read(&path).unwrap();
    assert_eq!(members(&ours), members(&reference));
    fs::write(&path, &reference).unwrap();
    assert_eq!(MaskFile::open(&path, &projections, None).unwrap().set, set);
    // The container, too, up to the length of what another compressor made.
    assert_eq!(ours[..84], reference[..84]);
}
