//! The cutters, without a device: the shapes of published models (tests/fixtures/published) through every one of them, at the binding
//! limits of real adapters. Every row is in exactly one piece, every piece is within the limits and starts where its kernel can.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

use maskwright::gpu::{Limits, OFFSET_ALIGNMENT};
use maskwright::kernel::{cut, f32_bytes};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What adapters bind, WebGPU's default first; beside a buffer of twice as much, and of as much.
const BINDINGS: [u64; 4] = [128 * MIB, 256 * MIB, 1024 * MIB, 2048 * MIB - 4];

/// What is cut of a model: sizes alone.
struct Shape {
    name: String,
    hidden: usize,
    /// Features between the projections of a block: of the feed-forward layer, and of all heads.
    inner: usize,
    queries: usize,
    vocabulary: usize,
    /// (rows, columns) of every matrix of a block; those that are stored as one, alone and together.
    matrices: Vec<(usize, usize)>,
}

impl Shape {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a fixture");
        let whole: Value = serde_json::from_str(&text).expect("JSON");
        // What transformers adds where gemma-3's published text_config says nothing.
        let defaults = [
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("vocab_size", 262_208),
        ];
        let (config, defaults) = match whole.get("text_config") {
            Some(text) => (text, &defaults[..]),
            None => (&whole, &[][..]),
        };
        let find = |names: &[&str]| {
            let given = names.iter().find_map(|n| config.get(n)?.as_u64());
            let default = || defaults.iter().find(|(n, _)| names.contains(n)).map(|d| d.1);
            given.or_else(default).map(|n| n as usize)
        };
        let need = |names: &[&str]| find(names).unwrap_or_else(|| panic!("{}: no {names:?}", path.display()));
        let hidden = need(&["hidden_size", "n_embd"]);
        let inner = find(&["intermediate_size", "ffn_dim"]).unwrap_or(4 * hidden);
        let heads = need(&["num_attention_heads", "n_head"]);
        let kv_heads = find(&["num_key_value_heads"]).unwrap_or(heads);
        let head_dim = find(&["head_dim"]).unwrap_or(hidden / heads);
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let mut matrices =
            vec![(queries, hidden), (keys, hidden), (hidden, queries), (inner, hidden), (hidden, inner)];
        // Stored as one.
        match config.get("model_type").and_then(Value::as_str) {
            Some("phi3") => matrices.extend([(queries + 2 * keys, hidden), (2 * inner, hidden)]),
            Some("glm4") => matrices.push((2 * inner, hidden)),
            Some("gpt2" | "gpt_neox") => matrices.push((3 * hidden, hidden)),
            _ => {}
        }
        Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into(),
            hidden,
            inner,
            queries,
            vocabulary: need(&["vocab_size"]),
            matrices,
        }
    }

    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published");
        let files = std::fs::read_dir(folder).expect("the folder").flatten().map(|f| f.path());
        let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        files.sort();
        assert!(files.len() >= 45, "{} models", files.len());
        files.iter().map(|p| Self::read(p)).collect()
    }

    /// Widths of the inputs of projections: sizes of Gram matrices.
    fn inputs(&self) -> [usize; 3] {
        [self.hidden, self.queries, self.inner]
    }
}

fn limits() -> impl Iterator<Item = Limits> {
    BINDINGS.into_iter().flat_map(|binding| {
        [binding, 2 * binding].map(|buffer| Limits { binding, buffer, groups: 65_535, shrink: 1 })
    })
}

/// Calls `check` for every model at every limit.
fn each(check: impl Fn(&Shape, Limits)) {
    for shape in Shape::all() {
        for limits in limits() {
            check(&shape, limits);
        }
    }
}

/// `pieces` are `all`, one behind the other, none empty, all but the last of `most` rows and starting at multiples of `unit`.
fn covers(what: &dyn Debug, all: Range<usize>, most: usize, unit: usize) {
    let mut next = all.start;
    for piece in cut::pieces(all.clone(), most) {
        assert_eq!(piece.start, next, "{what:?}: {piece:?} behind {next}");
        assert!(!piece.is_empty() && piece.len() <= most, "{what:?}: {piece:?} of {most}");
        assert!(piece.len() == most || piece.end == all.end, "{what:?}: {piece:?} is cut short");
        assert!(
            (piece.start - all.start).is_multiple_of(unit),
            "{what:?}: {piece:?} is not a multiple of {unit}"
        );
        next = piece.end;
    }
    assert_eq!(next, all.end, "{what:?}: rows are left");
}

/// The pieces of `all`, cut again where other buffers end, are still every row once; returns how many there are.
fn covers_in(what: &dyn Debug, all: Range<usize>, most: usize, chunks: &[Range<usize>]) -> usize {
    let (mut next, mut count) = (all.start, 0);
    for chunk in chunks {
        for piece in cut::pieces(cut::overlap(chunk, &all), most) {
            assert_eq!(piece.start, next, "{what:?}: {piece:?}");
            assert!(
                piece.start >= chunk.start && piece.end <= chunk.end,
                "{what:?}: {piece:?} leaves {chunk:?}"
            );
            next = piece.end;
            count += 1;
        }
    }
    assert_eq!(next, all.end, "{what:?}: rows are left");
    count
}

fn within(what: &dyn Debug, bytes: u64, most: u64) {
    assert!(bytes <= most, "{what:?}: {bytes} bytes, {most} at most");
}

#[test]
fn weights_in_chunks() {
    each(|shape, l| {
        let vocabulary = (shape.vocabulary, shape.hidden);
        for (rows, cols) in shape.matrices.iter().copied().chain([vocabulary]) {
            for size in [2, 4] {
                let row = (cols.next_multiple_of(4) * size) as u64;
                let most = cut::weight_rows(l, rows, row);
                let what = (&shape.name, "weight", rows, cols, size, l);
                covers(&what, 0..rows, most, 4);
                within(&what, most as u64 * row, l.binding.min(l.buffer));
                // The masked copies of a product, within every chunk.
                let chunks: Vec<_> = cut::pieces(0..rows, most).collect();
                let masked = cut::masked_rows(l, rows, row);
                covers_in(&what, 0..rows, masked, &chunks);
                within(&what, masked as u64 * row, cut::masked_bytes(l, rows as u64 * row).max(row));
                within(&what, cut::masked_bytes(l, u64::MAX), l.binding.min(32 * MIB));
            }
        }
    });
}

#[test]
fn square_matrices_in_chunks() {
    each(|shape, l| {
        for n in shape.inputs() {
            let what = (&shape.name, "square", n, l);
            let most = cut::square_rows(l, n);
            covers(&what, 0..n, most, 16);
            within(&what, f32_bytes(most, n), l.binding.min(l.buffer));
            let chunks: Vec<_> = cut::pieces(0..n, most).collect();
            assert!(chunks.iter().all(|c| c.len().is_multiple_of(4)), "{what:?}: vec4s of rows");
            // Strips of the triangle, from the products of every preset.
            for unit in [8, 16, 32, 64] {
                for parts in [4, 8] {
                    let strip = cut::triangle_rows(n, parts, unit);
                    assert!(
                        strip.is_multiple_of(4) && (64..=512).contains(&strip),
                        "{what:?}: strips of {strip}"
                    );
                    covers_in(&what, 0..n, strip, &chunks);
                }
            }
            // Blocks of the factor: none crosses a chunk.
            let block = cut::factor_rows(l, n);
            assert!(block <= 64 && (block.is_multiple_of(16) || block == n), "{what:?}: blocks of {block}");
            for chunk in &chunks {
                covers(&what, chunk.clone(), block, 1);
            }
            // Feature pieces of the input, each in the chunks that its rows are.
            for tokens in [4, 512, 4096, 8192] {
                let most = cut::feature_rows(l, n, tokens);
                covers(&what, 0..n, most, 32);
                for piece in cut::pieces(0..n, most) {
                    assert!(piece.len().is_multiple_of(4), "{what:?}: {piece:?} of vec4s");
                    covers_in(&what, piece, 512, &chunks);
                }
                let block = cut::block_tokens(l, n, tokens);
                covers(&what, 0..tokens, block, 4);
                assert!(block.is_multiple_of(4) && block <= 512, "{what:?}: blocks of {block} tokens");
                within(&what, f32_bytes(block, n), l.binding);
            }
        }
    });
}

#[test]
fn projections_in_panels_and_strips() {
    each(|shape, l| {
        for &(rows, cols) in &shape.matrices {
            let chunk = cut::weight_rows(l, rows, 2 * cols as u64);
            let chunks: Vec<_> = cut::pieces(0..rows, chunk).collect();
            let row = f32_bytes(1, cols);
            for (name, most, budget) in [
                ("panel", cut::panel_rows(l, rows, cols), 64 * MIB),
                ("effective", cut::effective_rows(l, rows, cols), 32 * MIB),
                ("gradient", cut::gradient_rows(l, rows, cols), 32 * MIB),
            ] {
                let what = (&shape.name, name, rows, cols, l);
                covers(&what, 0..rows, most, 4);
                within(&what, most as u64 * row, l.binding.min(l.buffer).min(budget));
                for piece in cut::pieces(0..rows, most) {
                    covers_in(&what, piece.clone(), usize::MAX, &chunks);
                    // Transposed as `[cols, rows / 4]` they take no more.
                    within(
                        &what,
                        f32_bytes(cols, piece.len().next_multiple_of(4)),
                        most.next_multiple_of(4) as u64 * row,
                    );
                }
            }
            // The mask is bound whole.
            within(&(&shape.name, "mask", rows, cols), (rows * cols.div_ceil(32) * 4) as u64, l.binding);
        }
    });
}

/// Logits and moments lie in one buffer; a binding of it starts at an aligned offset.
#[test]
fn states_in_bindings() {
    each(|shape, l| {
        for &(rows, cols) in &shape.matrices {
            // f32, f16, and a logit for each pattern of 2:4 and of 4:8.
            for (row, element) in [(4 * cols, 4), (2 * cols, 2), (6 * cols, 8), (35 * cols, 8)] {
                let all = (rows * row) as u64;
                for unit in [1, 4] {
                    let what = (&shape.name, "states", rows, cols, row, unit, l);
                    let most = cut::bound_rows(l, rows, row as u64, unit).expect("a unit fits");
                    covers(&what, 0..rows, most, unit);
                    for piece in cut::pieces(0..rows, most) {
                        let bound = cut::bound(&piece, row as u64, all.next_multiple_of(16));
                        assert!(bound.offset.is_multiple_of(OFFSET_ALIGNMENT), "{what:?}: {bound:?}");
                        assert!(
                            bound.skipped < OFFSET_ALIGNMENT && bound.skipped.is_multiple_of(element),
                            "{what:?}: {bound:?}"
                        );
                        assert_eq!(
                            bound.offset + bound.skipped,
                            (piece.start * row) as u64,
                            "{what:?}: {bound:?}"
                        );
                        let end = bound.skipped + (piece.len() * row) as u64;
                        assert!(end <= bound.bytes, "{what:?}: {bound:?} ends before {end}");
                        assert!(
                            bound.offset + bound.bytes <= all.next_multiple_of(16),
                            "{what:?}: {bound:?}"
                        );
                        within(&what, bound.bytes, l.binding);
                        let elements = end / element;
                        assert!(u32::try_from(elements).is_ok(), "{what:?}: {elements} elements");
                    }
                }
            }
        }
    });
}

#[test]
fn batches_and_vocabularies() {
    each(|shape, l| {
        let widest = shape.hidden.max(shape.queries);
        for length in [16, 100, 512, 2048, 4096, 8192] {
            let together = cut::together(length, 128);
            assert!(together >= 1 && (together == 1 || together * length <= 4096), "{together} of {length}");
            let windows = cut::windows(l, widest, length, together);
            let what = (&shape.name, "windows", windows, length, l);
            covers(&what, 0..128, windows, 1);
            let tokens = windows * length.next_multiple_of(4);
            // One window that does not fit is refused where it is allocated.
            if windows > 1 || f32_bytes(widest, length) <= l.binding {
                within(&what, f32_bytes(widest, tokens), l.binding);
            }
            let rows = shape.vocabulary;
            for (most, budget, unit) in [
                (cut::vocabulary_rows(l, rows, tokens), 16 * MIB, 64),
                (cut::trained_vocabulary_rows(l, rows, tokens), 128 * MIB, 64),
            ] {
                covers(&what, 0..rows, most, unit);
                within(&what, f32_bytes(most, tokens), l.binding.min(budget));
                assert!(most.is_multiple_of(4) || most == rows, "{what:?}: {most} rows");
            }
            assert!(
                cut::trained_vocabulary_rows(l, rows, tokens).is_multiple_of(4),
                "{what:?}: products take four"
            );
        }
    });
}

/// No grid has a side of more than the adapter allows, and each covers all; also of the largest matrices and the largest vocabulary.
#[test]
fn grids() {
    let check = |l: Limits, invocations: usize, lanes: u32| {
        let [x, y, z] = cut::fold(l, invocations, lanes).map(|g| g as usize);
        let (groups, what) = (invocations.div_ceil(lanes as usize), (invocations, lanes, l));
        assert!(x <= l.groups as usize && y <= l.groups as usize && z == 1, "{what:?}: {x} x {y}");
        assert!(x * y >= groups && x * y - groups < y.max(1), "{what:?}: {x} x {y} for {groups} workgroups");
        assert!(
            u32::try_from(x * y * lanes as usize).is_ok(),
            "{what:?}: numbers of invocations need 32 bits"
        );
    };
    each(|shape, l| {
        let vocabulary = (shape.vocabulary, shape.hidden);
        for (rows, cols) in shape.matrices.iter().copied().chain([vocabulary, (shape.inner, shape.inner)]) {
            for lanes in [8, 16, 64, 128, 256] {
                // A lane for each row, for each mask word, for each vec4, of what one buffer has.
                let chunk = cut::weight_rows(l, rows, 2 * cols as u64);
                check(l, chunk, 1);
                check(l, chunk, lanes);
                check(l, rows * cols.div_ceil(32), lanes);
                check(l, chunk * cols.div_ceil(4), lanes);
            }
            // The same at every binding limit.
            let units =
                if l.binding == BINDINGS[0] && l.buffer > l.binding { &[8, 16, 32, 64][..] } else { &[] };
            for &unit in units {
                for flops in [1e7, 1e9, 1e15] {
                    let most = cut::dispatch_rows(l, 2.0 * (cols * 4096) as f64, flops, unit);
                    assert!(
                        most.is_multiple_of(unit) && most / unit <= l.groups as usize,
                        "{most} rows of {unit}"
                    );
                    covers(&(&shape.name, "dispatch", rows, cols), 0..rows, most, unit);
                    let most = cut::dispatch_groups(l, 600.0 * cols as f64, flops);
                    covers(&(&shape.name, "rows", rows, cols), 0..rows, most, 1);
                    check(l, most, 1);
                }
            }
        }
    });
    // Around what one dimension holds.
    let l = Limits::from(128 * MIB);
    for groups in [1, 65_534, 65_535, 65_536, 65_537, 131_070, 131_071, 53_248 * 16_384 / 256, 262_144 * 64] {
        check(l, groups, 1);
        check(l, groups * 64, 64);
    }
}

/// The shapes that used to stop: panels of 64 MiB that are no multiple of four rows.
#[test]
fn panels_of_wide_down_projections() {
    let l = Limits::from(128 * MIB);
    for (n, rows) in [(11_008, 1524), (14_336, 1168), (18_944, 884), (28_672, 584), (53_248, 312)] {
        assert_eq!(cut::panel_rows(l, 8192, n), rows, "{n} inputs");
        assert_eq!(cut::panel_rows(l, 24, n), 24, "few rows are one panel");
    }
    assert_eq!(cut::square_rows(l, 53_248), 624);
    assert_eq!(cut::pieces(0..53_248, 624).count(), 86);
}

/// Budgets shrink alike, units do not: what small models are cut with in `tests/cut_kernels.rs`.
#[test]
fn shrunk_budgets_keep_units() {
    let whole = Limits::from(128 * MIB);
    for shrink in [1, 16, 1000, 4096] {
        let l = Limits { shrink, ..whole };
        let panel = cut::panel_rows(l, 100_000, 64);
        assert!(panel.is_multiple_of(4) && f32_bytes(panel, 64) <= 64 * MIB / shrink, "{panel} rows");
        let effective = cut::effective_rows(l, 100_000, 64);
        assert!(
            effective.is_multiple_of(4) && f32_bytes(effective, 64) <= 32 * MIB / shrink,
            "{effective} rows"
        );
        // What is bound whole is bounded by the adapter alone.
        assert_eq!(cut::square_rows(l, 4096), cut::square_rows(whole, 4096));
    }
    // Where not even a unit fits it is one unit all the same: the buffer is then refused by its name.
    let tiny = Limits::from(256);
    assert_eq!((cut::panel_rows(tiny, 100, 64), cut::square_rows(tiny, 64)), (4, 16));
    assert_eq!(cut::bound_rows(tiny, 100, 256, 1), None);
    assert_eq!(cut::bound_rows(tiny, 100, 0, 4), Some(100));
    assert_eq!(cut::pieces(0..0, 4).count(), 0);
    assert_eq!(cut::overlap(&(0..4), &(6..9)).len(), 0);
}
