//! Mutations of files: of bytes, of JSON, of safetensors.

use serde_json::{Map, Value, json};

use super::npz;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    /// The numbers of one case.
    pub fn new(seed: u64, case: u64) -> Self {
        let mut rng = Self(seed ^ case.wrapping_mul(0xd134_2543_de82_ef95));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n - 1`; 0 for none.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// How a file is mutated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Json,
    Safetensors,
    Npz,
    /// Bytes alone.
    Plain,
}

/// A mutated copy of `bytes`; pieces of `donor` may be spliced in.
pub fn mutate(rng: &mut Rng, kind: Kind, bytes: &[u8], donor: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + rng.below(8) / 5 {
        out = match (kind, rng.below(10)) {
            (Kind::Json, 0..7) => json_text(rng, &out),
            (Kind::Safetensors, 0..3) => header(rng, &out),
            (Kind::Safetensors, 3..6) => rebuilt(rng, &out),
            (Kind::Safetensors, 6) => header_length(rng, out),
            (Kind::Safetensors, 7) => data(rng, out),
            (Kind::Npz, 0..6) => npz::rebuilt(rng, &out).unwrap_or(out),
            _ => plain(rng, out, donor),
        };
    }
    out
}

// ---- Bytes ---------------------------------------------------------------------------------------------------------

const WORDS: [u64; 10] =
    [0, 1, 8, 0x7f, 0xffff, 0x8000, u32::MAX as u64, i64::MAX as u64, u64::MAX, u64::MAX - 7];

fn plain(rng: &mut Rng, mut out: Vec<u8>, donor: &[u8]) -> Vec<u8> {
    let at = rng.below(out.len());
    let short = 1 + rng.below(64);
    let end = (at + short).min(out.len());
    match rng.below(10) {
        0..3 => {
            for _ in 0..1 + rng.below(8) {
                let at = rng.below(out.len());
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
        }
        3 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'{', b'}', b'"', b'0', b'9', b'-', b',']);
            }
        }
        4 => out.truncate(*rng.pick(&[0, 7, 8, 9, at, at, out.len().saturating_sub(1)])),
        5 => out.extend((0..short).map(|i| (i * 37) as u8)),
        6 => {
            out.drain(at..end);
        }
        7 => {
            let piece = out[at..end].to_vec();
            out.splice(at..at, piece);
        }
        8 => {
            let from = rng.below(donor.len());
            let piece = &donor[from..(from + rng.below(4096)).min(donor.len())];
            let until = (at + piece.len()).min(out.len());
            // Over the old bytes, or between them.
            let until = if rng.below(2) == 0 { until } else { at };
            out.splice(at..until, piece.iter().copied());
        }
        _ => {
            let word = rng.pick(&WORDS).to_le_bytes();
            let until = (at + 8).min(out.len());
            out[at..until].copy_from_slice(&word[..until - at]);
        }
    }
    out
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

/// Stand for what a [`Value`] cannot hold, and are replaced in the text.
const RAW: &str = "@@RAW@@";
const DUPLICATE: &str = "@@DUP@@";

const DTYPES: [&str; 16] = [
    "F32", "F16", "BF16", "F64", "I8", "U8", "I16", "I32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4",
    "F6_E2M3", "C64", "f32",
];

/// Values, as they stand in a text.
const TEXTS: &str = r#"
    null true false 0 -0 -1 1 2 3 4 5 7 8 12 16 17 255 256 4096 65536 1048576 4294967295 4294967296
    9007199254740993 9223372036854775807 9223372036854775808 18446744073709551615
    18446744073709551616 -9223372036854775808 123456789012345678901234567890 1e308 1e400 1e-320 -0.0
    0.5 [] {} [0,0] [18446744073709551615,18446744073709551615] "" "\u0000" "\ud800" "../config.json"
    "2:4" "15:16" NaN
"#;

/// Mutates the text of a JSON document; bytes where it is none.
pub fn json_text(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
        return plain(rng, bytes.to_vec(), bytes);
    };
    let raw = edit(rng, &mut value);
    let mut text = value.to_string();
    if let Some(raw) = raw {
        text = text.replace(&format!("\"{RAW}\""), &raw);
    }
    text.replace(DUPLICATE, "").into_bytes()
}

/// Every place below a value, as JSON pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    let mut below = |key: String, value: &Value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        let place = format!("{here}/{key}");
        all.push(place.clone());
        places(value, &place, all);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key.clone(), value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| below(i.to_string(), value)),
        _ => {}
    }
}

/// The object or list that holds a place, and the place's name in it.
fn holder<'v>(value: &'v mut Value, place: &str) -> Option<(&'v mut Value, String)> {
    let (above, key) = place.rsplit_once('/')?;
    Some((value.pointer_mut(above)?, key.replace("~1", "/").replace("~0", "~")))
}

fn text(rng: &mut Rng) -> String {
    let all: Vec<&str> = TEXTS.split_whitespace().collect();
    (*rng.pick(&all)).into()
}

/// Changes a value in one place. Returns the text that is to stand for [`RAW`], if any.
fn edit(rng: &mut Rng, value: &mut Value) -> Option<String> {
    let mut all = Vec::new();
    places(value, "", &mut all);
    if all.is_empty() {
        *value = RAW.into();
        return Some(text(rng));
    }
    let place = rng.pick(&all).clone();
    let other = rng.pick(&all).clone();
    match rng.below(12) {
        0..4 => {
            let node = value.pointer_mut(&place)?;
            if let Some(changed) = tweaked(rng, node) {
                *node = changed;
                return None;
            }
            *node = RAW.into();
            Some(text(rng))
        }
        4..6 => {
            *value.pointer_mut(&place)? = RAW.into();
            Some(text(rng))
        }
        6 => {
            let (above, key) = holder(value, &place)?;
            match above {
                Value::Object(map) => drop(map.remove(&key)),
                Value::Array(list) => drop(list.remove(key.parse().ok()?)),
                _ => {}
            }
            None
        }
        7 => {
            let twin = value.pointer(&other)?.clone();
            let (above, key) = holder(value, &place)?;
            match above {
                // A second time under the same name.
                Value::Object(map) => drop(map.insert(format!("{DUPLICATE}{key}"), twin)),
                Value::Array(list) => list.push(twin),
                _ => {}
            }
            None
        }
        8 => {
            // Two places change their values, where neither holds the other.
            if place.starts_with(&other) || other.starts_with(&place) {
                return None;
            }
            let (a, b) = (value.pointer(&place)?.clone(), value.pointer(&other)?.clone());
            *value.pointer_mut(&place)? = b;
            *value.pointer_mut(&other)? = a;
            None
        }
        9 => {
            let (above, key) = holder(value, &place)?;
            if let Value::Object(map) = above {
                let names: Vec<String> = map.keys().cloned().collect();
                let moved = map.remove(&key)?;
                let name = if rng.below(2) == 0 { rng.pick(&names).clone() } else { format!("{key}x") };
                map.insert(name, moved);
            }
            None
        }
        10 => {
            let depth = *rng.pick(&[3, 126, 127, 128, 1000, 100_000]);
            *value.pointer_mut(&place)? = RAW.into();
            Some(match rng.below(2) {
                0 => format!("{}{}", "[".repeat(depth), "]".repeat(depth)),
                _ => format!("{}0{}", "{\"a\":".repeat(depth), "}".repeat(depth)),
            })
        }
        _ => {
            *value.pointer_mut(&place)? = RAW.into();
            Some(match rng.below(3) {
                0 => format!("\"{}\"", "é".repeat(20_000)),
                1 => format!("[{}0]", "0,".repeat(10_000)),
                _ => format!("{{{}\"b\":0}}", "\"a\":[],".repeat(4_000)),
            })
        }
    }
}

/// A value of the same kind that is near.
fn tweaked(rng: &mut Rng, value: &Value) -> Option<Value> {
    match value {
        Value::Number(n) => {
            let n = n.as_i64()?;
            let step = *rng.pick(&[1, -1, 8, -8]);
            let near = [
                n.wrapping_add(step),
                n.wrapping_mul(2),
                n / 2,
                n.wrapping_neg(),
                n.wrapping_mul(1 << 32),
                n ^ 4,
            ];
            Some((*rng.pick(&near)).into())
        }
        Value::String(text) if DTYPES.contains(&text.as_str()) => Some((*rng.pick(&DTYPES)).into()),
        Value::String(text) if text.starts_with('{') => {
            Some(String::from_utf8_lossy(&json_text(rng, text.as_bytes())).into_owned().into())
        }
        Value::String(text) => {
            let changed = plain(rng, text.clone().into_bytes(), b"2:4 1:4 model.layers.0.mlp.up_proj.weight");
            Some(String::from_utf8_lossy(&changed).into_owned().into())
        }
        Value::Bool(b) => Some((!b).into()),
        _ => None,
    }
}

// ---- safetensors ---------------------------------------------------------------------------------------------------

/// Header and data.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.extend_from_slice(data);
    out
}

/// Another header before the same data.
fn header(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    match split(bytes) {
        Some((header, data)) => {
            let mut header = json_text(rng, header);
            if rng.below(2) == 0 {
                header.resize(header.len().next_multiple_of(8), b' ');
            }
            joined(&header, data)
        }
        None => plain(rng, bytes.to_vec(), bytes),
    }
}

fn header_length(rng: &mut Rng, mut out: Vec<u8>) -> Vec<u8> {
    let (file, now) = (out.len() as u64, split(&out).map_or(0, |(header, _)| header.len() as u64));
    let lengths = [
        0,
        1,
        7,
        now.wrapping_sub(1),
        now + 1,
        now + 8,
        file.wrapping_sub(9),
        file.wrapping_sub(8),
        file.wrapping_sub(7),
        file,
        100_000_000,
        100_000_001,
        u64::from(u32::MAX),
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ];
    let length = rng.pick(&lengths).to_le_bytes();
    out.iter_mut().zip(length).for_each(|(byte, new)| *byte = new);
    out
}

/// Other weights: a bit, a negative zero, not a number, zeros, a range in the place of another.
fn data(rng: &mut Rng, mut out: Vec<u8>) -> Vec<u8> {
    let start = split(&out).map_or(0, |(header, _)| header.len() + 8);
    let length = out.len().saturating_sub(start);
    for _ in 0..1 + rng.below(3) {
        let at = start + rng.below(length) / 2 * 2;
        let long = 2 + 2 * rng.below(40);
        let from = start + rng.below(length) / 2 * 2;
        let Some(rest) = out.get_mut(at..) else { break };
        match (rng.below(6), rest) {
            (0, [low, high, ..]) => (*low, *high) = (0, 0x80),
            (1, [low, high, ..]) => (*low, *high) = (1, 0x7f),
            (2, rest) => rest.iter_mut().take(long).for_each(|b| *b = 0),
            (3, _) => {
                let piece = out.get(from..(from + long).min(out.len())).unwrap_or(&[]).to_vec();
                out.iter_mut().skip(at).zip(piece).for_each(|(byte, new)| *byte = new);
            }
            (_, [low, ..]) => *low ^= 1 << rng.below(8),
            _ => {}
        }
    }
    out
}

/// A file of the same form throughout, with another tensor or the tensors in another form.
fn rebuilt(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    rebuild(rng, bytes).unwrap_or_else(|| plain(rng, bytes.to_vec(), bytes))
}

fn rebuild(rng: &mut Rng, bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, data) = split(bytes)?;
    let header: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let mut tensors = Vec::new();
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |i: usize| usize::try_from(info["data_offsets"][i].as_u64()?).ok();
        let piece = data.get(offset(0)?..offset(1)?)?;
        tensors.push((name.clone(), info["dtype"].clone(), info["shape"].clone(), piece.to_vec()));
    }
    let (at, other) = (rng.below(tensors.len()), rng.below(tensors.len()));
    let (name, dtype, shape, piece) = tensors.get_mut(at)?;
    let sides: Vec<u64> = shape.as_array()?.iter().filter_map(Value::as_u64).collect();
    let (all, last) =
        (sides.iter().fold(1, |all: u64, &n| all.wrapping_mul(n)), sides.last().copied().unwrap_or(1));
    match rng.below(9) {
        0 => {
            let shapes = [
                json!([last, all / last.max(1)]),
                json!([all]),
                json!([1, all]),
                json!([all, 1]),
                json!([all / 2, 2]),
                json!([1, 1, all]),
            ];
            *shape = rng.pick(&shapes).clone();
        }
        1 => {
            // As many bytes in another type.
            let (to, bits) =
                *rng.pick(&[("F4", 4), ("U8", 8), ("F8_E4M3", 8), ("I16", 16), ("F16", 16), ("F32", 32)]);
            (*dtype, *shape) = (to.into(), json!([piece.len() as u64 * 8 / bits]));
        }
        2 => {
            let empty =
                [json!([0, u64::MAX]), json!([0, 1u64 << 62, 4]), json!([0, 0]), json!([4, 0]), json!([0])];
            (*shape, *piece) = (rng.pick(&empty).clone(), Vec::new());
        }
        3 => piece.iter_mut().for_each(|b| *b = 0),
        4 => *name = format!("{name}.more"),
        5 => drop(tensors.remove(at)),
        6 => {
            let (a, b) = (tensors[at].0.clone(), tensors[other].0.clone());
            (tensors[at].0, tensors[other].0) = (b, a);
        }
        7 => tensors.swap(at, other),
        _ => {
            let mut twin = tensors[at].clone();
            twin.0 = rng.pick(&["lm_head.weight", "extra", "model.layers.9.mlp.up_proj.weight"]).to_string();
            tensors.push(twin);
        }
    }
    let mut new = Map::new();
    if let Some(metadata) = header.get("__metadata__") {
        new.insert("__metadata__".into(), metadata.clone());
    }
    let mut data = Vec::new();
    for (name, dtype, shape, piece) in tensors {
        let begin = data.len();
        data.extend(piece);
        new.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }));
    }
    Some(joined(Value::Object(new).to_string().as_bytes(), &data))
}
