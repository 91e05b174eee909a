//! The description of each family, executed naively in f64, gives the logits that transformers gives for small random models.

use std::fs;
use std::path::{Path, PathBuf};

use maskwright::model::{
    ActivationKind, Architecture, Checkpoint, Gain, NormKind, ProjectionKind, QkNorm, QkSpread, family_names,
};
use safetensors::SafeTensors;

type Rows = Vec<Vec<f64>>;

struct Model {
    of: Architecture,
    weights: Checkpoint,
}

impl Model {
    fn open(folder: &Path) -> Self {
        let of = Architecture::read(folder).unwrap_or_else(|e| panic!("{e}"));
        let weights = Checkpoint::open(folder, &of).unwrap_or_else(|e| panic!("{e}"));
        Self { of, weights }
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        let tensor = self.weights.tensor(name).unwrap_or_else(|e| panic!("{e}"));
        tensor.to_f32().into_iter().map(f64::from).collect()
    }

    fn linear(&self, x: &Rows, weight: &str, bias: Option<String>) -> Rows {
        let weight = self.tensor(weight);
        let inputs = x[0].len();
        let bias = bias.map_or_else(|| vec![0.0; weight.len() / inputs], |name| self.tensor(&name));
        let one = |x: &Vec<f64>| {
            let rows = weight.chunks_exact(inputs).zip(&bias);
            rows.map(|(row, bias)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias).collect()
        };
        x.iter().map(one).collect()
    }

    fn project(&self, x: &Rows, block: usize, kind: ProjectionKind) -> Rows {
        let p = self.of.projection(block, kind);
        self.linear(x, &p.name, self.of.has_bias(kind).then(|| p.bias_name()))
    }

    fn norm(&self, x: &Rows, module: &str) -> Rows {
        let norm = self.of.norm;
        let gains = (norm.gain != Gain::None).then(|| self.tensor(&format!("{module}.weight")));
        let bias = norm.bias.then(|| self.tensor(&format!("{module}.bias")));
        let one = |x: &Vec<f64>| {
            let mut out = normed(x, norm.kind, norm.eps, norm.gain, gains.as_deref());
            if let Some(bias) = &bias {
                out.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
            out
        };
        x.iter().map(one).collect()
    }

    /// The norm of a block, where it has one in this place.
    fn norm_in(&self, x: &Rows, block: usize, module: Option<&str>) -> Rows {
        module.map_or_else(|| x.clone(), |module| self.norm(x, &self.of.module(block, module)))
    }

    fn norm_heads(&self, x: &mut Rows, norm: &QkNorm, block: usize, module: &str, heads: usize) {
        let tensors = self.of.qk_norm_tensors(norm, block, module, heads);
        let gains: Vec<f64> = tensors.iter().flat_map(|t| self.tensor(&t.name)).collect();
        let width = if norm.spread == QkSpread::Whole { heads * self.of.head_dim } else { self.of.head_dim };
        for row in x {
            for (i, head) in row.chunks_exact_mut(width).enumerate() {
                let first = if norm.spread == QkSpread::Shared { 0 } else { i * width };
                let out = normed(head, norm.kind, norm.eps, norm.gain, Some(&gains[first..first + width]));
                head.copy_from_slice(&out);
            }
        }
    }

    fn turn(&self, x: &mut Rows, rope: usize) {
        let (rope, rotary, length) = (&self.of.ropes[rope], self.of.rotary, x.len());
        let frequencies = rope.frequencies(rotary.turned, length);
        for (position, row) in x.iter_mut().enumerate() {
            for head in row.chunks_exact_mut(self.of.head_dim) {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let pair =
                        if rotary.interleaved { (2 * i, 2 * i + 1) } else { (i, i + rotary.turned / 2) };
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    let (a, b) = (head[pair.0], head[pair.1]);
                    head[pair.0] = (a * cos - b * sin) * rope.attention_factor();
                    head[pair.1] = (b * cos + a * sin) * rope.attention_factor();
                }
            }
        }
    }

    fn attention(&self, x: &Rows, block: usize) -> Rows {
        let of = &self.of;
        let [mut q, mut k, mut v] = [ProjectionKind::Q, ProjectionKind::K, ProjectionKind::V]
            .map(|kind| self.project(x, block, kind));
        if let Some(clip) = of.attention.clip.map(f64::from) {
            for x in [&mut q, &mut k, &mut v].into_iter().flatten().flatten() {
                *x = x.clamp(-clip, clip);
            }
        }
        if let Some(norm) = &of.qk_norm {
            self.norm_heads(&mut q, norm, block, norm.q, of.num_heads);
            self.norm_heads(&mut k, norm, block, norm.k, of.num_kv_heads);
        }
        let layer = of.layers[block];
        if let Some(rope) = layer.rope {
            self.turn(&mut q, rope);
            self.turn(&mut k, rope);
        }
        if let Some(growth) = of.attention.growth {
            q.iter_mut().enumerate().for_each(|(i, q)| q.iter_mut().for_each(|x| *x *= growth.at(i)));
        }
        let width = of.head_dim;
        let mut out = vec![vec![0.0; of.query_rows()]; x.len()];
        for (i, out) in out.iter_mut().enumerate() {
            let first = layer.window.map_or(0, |window| (i + 1).saturating_sub(window));
            for head in 0..of.num_heads {
                let own = head * width..(head + 1) * width;
                let shared = head / (of.num_heads / of.num_kv_heads) * width;
                let score = |j: usize| {
                    let k = &k[j][shared..shared + width];
                    let product: f64 = q[i][own.clone()].iter().zip(k).map(|(q, k)| q * k).sum();
                    let score = product * f64::from(of.attention.scale);
                    of.attention
                        .cap
                        .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                        .exp()
                };
                let scores: Vec<f64> = (first..=i).map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (j, score) in (first..=i).zip(scores) {
                    let v = &v[j][shared..shared + width];
                    out[own.clone()].iter_mut().zip(v).for_each(|(out, v)| *out += score / sum * v);
                }
            }
        }
        self.project(&out, block, ProjectionKind::O)
    }

    fn feed_forward(&self, x: &Rows, block: usize) -> Rows {
        let act = |x: f64| activation(self.of.feed_forward.activation, x);
        let mut up = self.project(x, block, ProjectionKind::Up);
        if self.of.feed_forward.gated {
            let gate = self.project(x, block, ProjectionKind::Gate);
            up.iter_mut().flatten().zip(gate.iter().flatten()).for_each(|(up, gate)| *up *= act(*gate));
        } else {
            up.iter_mut().flatten().for_each(|up| *up = act(*up));
        }
        self.project(&up, block, ProjectionKind::Down)
    }

    fn add(&self, x: &mut Rows, part: &Rows) {
        let scale = f64::from(self.of.scales.residual);
        x.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(x, part)| *x += scale * part);
    }

    fn block(&self, x: &mut Rows, block: usize) {
        let shape = self.of.block;
        let entering = self.norm_in(x, block, shape.attention_in);
        let attention = self.norm_in(&self.attention(&entering, block), block, shape.attention_out);
        let mut second = entering;
        if shape.parallel {
            if shape.feed_forward_in.is_some() {
                second = self.norm_in(x, block, shape.feed_forward_in);
            }
            self.add(x, &attention);
        } else {
            self.add(x, &attention);
            second = self.norm_in(x, block, shape.feed_forward_in);
        }
        let added = self.norm_in(&self.feed_forward(&second, block), block, shape.feed_forward_out);
        self.add(x, &added);
    }

    fn logits(&self, ids: &[usize]) -> Rows {
        let (of, width) = (&self.of, self.of.hidden_size);
        let embedding = self.tensor(&of.embedding_name());
        let row = |id: &usize| embedding[id * width..(id + 1) * width].to_vec();
        let mut x: Rows = ids.iter().map(row).collect();
        x.iter_mut().flatten().for_each(|x| *x *= f64::from(of.scales.embedding));
        if let (Some(positions), Some(name)) = (of.positions, of.positions_name()) {
            let rows = self.tensor(&name);
            let rows = rows.chunks_exact(width).skip(positions.offset);
            x.iter_mut().zip(rows).for_each(|(x, row)| x.iter_mut().zip(row).for_each(|(x, p)| *x += p));
        }
        (0..of.num_layers).for_each(|block| self.block(&mut x, block));
        let x = self.norm(&x, &of.final_norm_module());
        let bias = of.output_bias.then(|| of.output_bias_name());
        let mut logits = self.linear(&x, &of.output_name(), bias);
        for logit in logits.iter_mut().flatten() {
            *logit *= f64::from(of.scales.logits);
            if let Some(cap) = of.logit_cap.map(f64::from) {
                *logit = cap * (*logit / cap).tanh();
            }
        }
        logits
    }
}

fn normed(x: &[f64], kind: NormKind, eps: f32, gain: Gain, gains: Option<&[f64]>) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / count } else { 0.0 };
    let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let divisor = (square + f64::from(eps)).sqrt();
    let gain_of = |i: usize| match (gain, gains) {
        (Gain::OnePlus, Some(gains)) => 1.0 + gains[i],
        (Gain::Plain, Some(gains)) => gains[i],
        _ => 1.0,
    };
    x.iter().enumerate().map(|(i, x)| (x - mean) / divisor * gain_of(i)).collect()
}

fn activation(kind: ActivationKind, x: f64) -> f64 {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    match kind {
        ActivationKind::Silu => x / (1.0 + (-x).exp()),
        ActivationKind::Gelu => x / 2.0 * (1.0 + erf(x / 2f64.sqrt())),
        ActivationKind::GeluTanh => x / 2.0 * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh()),
        ActivationKind::Relu => x.max(0.0),
        ActivationKind::Relu2 => x.max(0.0).powi(2),
    }
}

/// By its series, which is exact to the last digits for the small numbers here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    (2.0 / std::f64::consts::PI.sqrt() * sum).clamp(-1.0, 1.0)
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

/// Compares with the tensors `PREFIXinput_ids` and `PREFIXlogits`.
fn compare(name: &str, model: &Model, expected: &SafeTensors<'_>, prefix: &str) {
    let ids = expected.tensor(&format!("{prefix}input_ids")).unwrap();
    let logits = expected.tensor(&format!("{prefix}logits")).unwrap();
    let length = ids.shape()[1];
    let id = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap()) as usize;
    let ids: Vec<usize> = ids.data().chunks_exact(8).map(id).collect();
    let number = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
    let logits: Vec<f64> = logits.data().chunks_exact(4).map(number).collect();
    let vocabulary = model.of.vocab_size;
    let largest = logits.iter().fold(0f64, |most, x| most.max(x.abs()));
    for (ids, logits) in ids.chunks_exact(length).zip(logits.chunks_exact(length * vocabulary)) {
        let found = model.logits(ids).into_iter().flatten();
        let mut count = 0;
        for (found, expected) in found.zip(logits) {
            count += 1;
            let off = (found - expected).abs();
            // Also where it is no number.
            assert!(off < 2e-5 * largest, "{name} {prefix}{count}: off by {off} of {largest}");
        }
        assert_eq!(count, length * vocabulary);
    }
}

#[test]
fn descriptions_executed_naively_give_the_logits_of_transformers() {
    let entries = fs::read_dir(families()).expect("tests/fixtures/families");
    let mut seen = Vec::new();
    for folder in entries.map(|e| e.unwrap().path()).filter(|p| p.join("expected.safetensors").is_file()) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if name == "opt_350m" {
            continue;
        }
        let model = Model::open(&folder);
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        compare(&name, &model, &expected, "");
        if expected.tensor("short.logits").is_ok() {
            compare(&name, &model, &expected, "short.");
        }
        seen.push(model.of.family);
    }
    let missing: Vec<_> = family_names().filter(|family| !seen.contains(family)).collect();
    assert!(missing.is_empty() || missing == ["llama"], "no fixture of {missing:?}");
}
