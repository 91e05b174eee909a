//! What a decoder computes, as plain data: everything in which families differ. `families` makes it from a config.json, `nn`
//! executes it; neither this nor anything above it names a family.

use std::ops::Range;

use super::projection::{Part, PlaceInTensor};
use super::{ActivationKind, Channels, Dtype, NormKind, ProjectionKind, Rope};

/// A decoder. All sizes are checked: not zero, below sane bounds, heads divisible by kv heads.
#[derive(Clone, PartialEq, Debug)]
pub struct Architecture {
    /// The `model_type` of config.json: for messages and reports only.
    pub family: &'static str,
    /// Rows of the embedding and of the output matrix.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Features of a head. Need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// All norms but those of queries and keys.
    pub norm: NormShape,
    /// Where a block has norms, and in what order its parts are computed.
    pub block: BlockShape,
    /// The norm of queries and keys before their rotation.
    pub qk_norm: Option<QkNorm>,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
    /// What every block's attention does alike.
    pub attention: AttentionShape,
    /// What the blocks' attention differs in, one for each block.
    pub layers: Vec<LayerShape>,
    /// The rotary embeddings that [`LayerShape::rope`] names.
    pub ropes: Vec<Rope>,
    /// Which features of a head they turn.
    pub rotary: RotaryShape,
    /// Learned embeddings of positions, added to those of the tokens.
    pub positions: Option<LearnedPositions>,
    /// Constants that embeddings, branches and logits are multiplied with.
    pub scales: Scales,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// The projections with a bias.
    pub biases: Vec<ProjectionKind>,
    /// The output matrix has a bias.
    pub output_bias: bool,
    /// The output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Channels whose order something depends on that is not described here, with what that is.
    pub bound: Vec<(Channels, &'static str)>,
    /// The longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The token that opens a text, when there is one.
    pub bos_token_id: Option<u32>,
    /// The ids of the tokens that end a text (`eos_token_id`, an id or a list).
    pub eos_token_ids: Vec<u32>,
    /// The type that the weights are said to be stored in, where it is named and supported. The files decide.
    pub dtype: Option<Dtype>,
    /// How the tensors are called and where the projections lie in them.
    pub names: Names,
}

/// A norm over the residual stream.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NormShape {
    /// What it computes.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// What it is multiplied with.
    pub gain: Gain,
    /// Whether a bias is added.
    pub bias: bool,
}

/// The gains of a norm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gain {
    /// None.
    None,
    /// The stored ones.
    Plain,
    /// One more than the stored ones.
    OnePlus,
}

/// The norms of a block by their module names, and its order. Without one of them its place is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockShape {
    /// Before the attention.
    pub attention_in: Option<&'static str>,
    /// On what the attention adds to the residual stream.
    pub attention_out: Option<&'static str>,
    /// Before the feed-forward layer.
    pub feed_forward_in: Option<&'static str>,
    /// On what the feed-forward layer adds to the residual stream.
    pub feed_forward_out: Option<&'static str>,
    /// Both parts read the block's input. Without `feed_forward_in` they share the norm before the attention.
    pub parallel: bool,
}

impl BlockShape {
    /// One norm before each part, as Llama.
    pub fn before(attention: &'static str, feed_forward: &'static str) -> Self {
        Self {
            attention_in: Some(attention),
            attention_out: None,
            feed_forward_in: Some(feed_forward),
            feed_forward_out: None,
            parallel: false,
        }
    }

    /// The module names of its norms.
    pub fn norms(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.attention_in, self.attention_out, self.feed_forward_in, self.feed_forward_out]
            .into_iter()
            .flatten()
    }
}

/// The norm of queries and keys.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QkNorm {
    /// What it computes.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// One more than the stored gains, or those.
    pub gain: Gain,
    /// How the gains lie, and over what the norm goes.
    pub spread: QkSpread,
    /// Module of the queries' norm within the block.
    pub q: &'static str,
    /// Module of the keys' norm.
    pub k: &'static str,
}

/// Over what the norm of queries and keys goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QkSpread {
    /// Each head by itself, with gains `[head_dim]` that all share.
    Shared,
    /// Each head by itself, with gains of its own in one tensor `[heads, head_dim]`.
    Matrix,
    /// Each head by itself, with gains of its own in a tensor `MODULE.norms.HEAD.weight` `[head_dim]` each.
    Tensors,
    /// All heads together, gains `[heads * head_dim]`.
    Whole,
}

/// The feed-forward layer: `down(act(gate x) * up x)`, or `down(act(up x))`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedForward {
    /// Whether there is a gate.
    pub gated: bool,
    /// The nonlinearity.
    pub activation: ActivationKind,
}

/// What every block's attention does alike.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AttentionShape {
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// Queries, keys and values are cut to `-clip..clip` before the rotation.
    pub clip: Option<f32>,
    /// Queries grow with their position. Only with a rotation that turns whole heads.
    pub growth: Option<QueryGrowth>,
}

/// Queries times `1 + beta * ln(1 + floor(position / original))`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QueryGrowth {
    /// How fast.
    pub beta: f64,
    /// The length within which they do not grow, in tokens.
    pub original: f64,
}

impl QueryGrowth {
    /// The factor at a position.
    pub fn at(&self, position: usize) -> f64 {
        1.0 + self.beta * (1.0 + (position as f64 / self.original).floor()).ln()
    }
}

/// A block's attention.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LayerShape {
    /// A query sees this many keys, its own included; without one all before it.
    pub window: Option<usize>,
    /// The rotary embedding, by its place in [`Architecture::ropes`]; none: queries and keys stay as they are.
    pub rope: Option<usize>,
}

/// Which features of a head turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RotaryShape {
    /// The first ones, an even number.
    pub turned: usize,
    /// In pairs `(2 i, 2 i + 1)` and not `(i, i + turned / 2)`.
    pub interleaved: bool,
}

/// Learned embeddings of positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LearnedPositions {
    /// Their tensor's name behind the prefix.
    pub name: &'static str,
    /// Rows before that of the first position.
    pub offset: usize,
}

/// Constants that are multiplied in.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scales {
    /// On the embeddings.
    pub embedding: f32,
    /// On what each part of a block adds to the residual stream.
    pub residual: f32,
    /// On the logits, before their cap.
    pub logits: f32,
}

impl Default for Scales {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

/// How the tensors are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// In front of every name but the output matrix's, such as `model.`
    pub prefix: String,
    /// The other prefixes under which such models are stored, with that of the output matrix.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// Of the embedding, behind the prefix.
    pub embedding: &'static str,
    /// Module of the last norm, behind the prefix.
    pub final_norm: &'static str,
    /// Module of the output matrix, in full.
    pub output: String,
    /// Of the blocks, behind the prefix, before the number: `layers`.
    pub blocks: &'static str,
    /// Where each projection lies, in the order of [`ProjectionKind::ALL`]; none: there is no such projection.
    pub places: [Option<PlaceInTensor>; ProjectionKind::ALL.len()],
}

/// A tensor that an architecture calls for, as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
}

/// A tensor by which the rest of the program knows a part of a stored one, or one that is stored transposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorPart {
    /// The name under which it is asked for.
    pub name: String,
    /// The stored tensor.
    pub stored: String,
    /// `[outputs, inputs]`, or `[outputs]` of a bias.
    pub shape: Vec<usize>,
    /// Which of the stored outputs; none: all.
    pub part: Option<Part>,
    /// Stored `[inputs, outputs]`.
    pub transposed: bool,
}

impl TensorPart {
    /// The stored output that is output `i` here.
    pub fn stored_output(&self, i: usize) -> usize {
        match self.part {
            Some(p) => p.first + i / p.run * p.stride + i % p.run,
            None => i,
        }
    }

    /// All outputs of the stored tensor.
    pub fn stored_outputs(&self) -> usize {
        self.part.map_or(self.shape[0], |p| p.of)
    }

    /// Elements of an output.
    fn row(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// Where its bytes lie in those of the stored tensor, whose elements take `size` bytes; nothing where they do not lie together in
    /// this order.
    pub fn range(&self, size: usize) -> Option<Range<usize>> {
        let together =
            !self.transposed && self.part.is_none_or(|p| self.shape[0] <= p.run || p.stride == p.run);
        let row = self.row() * size;
        let first = self.stored_output(0);
        together.then(|| first * row..(first + self.shape[0]) * row)
    }

    /// The byte of the stored tensor at which element `(output, input)` begins.
    fn stored_at(&self, output: usize, input: usize, size: usize) -> usize {
        let output = self.stored_output(output);
        let at = if self.transposed {
            input * self.stored_outputs() + output
        } else {
            output * self.row() + input
        };
        at * size
    }

    /// Its bytes, in the order of its own shape, out of those of the stored tensor, whose elements take `size` bytes.
    pub fn gather(&self, stored: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.shape.iter().product::<usize>() * size);
        for output in 0..self.shape[0] {
            if self.transposed {
                for input in 0..self.row() {
                    let at = self.stored_at(output, input, size);
                    out.extend_from_slice(stored.get(at..at + size).unwrap_or(&[]));
                }
            } else {
                let at = self.stored_at(output, 0, size);
                out.extend_from_slice(stored.get(at..at + self.row() * size).unwrap_or(&[]));
            }
        }
        out
    }

    /// Puts its bytes, in the order of its own shape, where they lie in the stored tensor.
    pub fn scatter(&self, own: &[u8], stored: &mut [u8], size: usize) {
        let run = if self.transposed { 1 } else { self.row() };
        for (i, elements) in own.chunks_exact((run * size).max(1)).enumerate() {
            let (output, input) = (i * run / self.row(), i * run % self.row());
            let at = self.stored_at(output, input, size);
            if let Some(place) = stored.get_mut(at..at + run * size) {
                place.copy_from_slice(elements);
            }
        }
    }
}

impl Architecture {
    /// The projections that a block has, in the order in which every list of projections walks a block.
    pub fn kinds(&self) -> impl Iterator<Item = ProjectionKind> + Clone + use<> {
        let gated = self.feed_forward.gated;
        ProjectionKind::ALL.into_iter().filter(move |kind| gated || *kind != ProjectionKind::Gate)
    }

    /// Number of projections of a block.
    pub fn kinds_count(&self) -> usize {
        self.kinds().count()
    }

    /// Whether projections of this kind have a bias.
    pub fn has_bias(&self, kind: ProjectionKind) -> bool {
        self.biases.contains(&kind)
    }

    /// Features of all query heads.
    pub fn query_rows(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Features of all key heads.
    pub fn key_rows(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The embedding's tensor name, `[vocab_size, hidden_size]`.
    pub fn embedding_name(&self) -> String {
        format!("{}{}", self.names.prefix, self.names.embedding)
    }

    /// The tensor name of the output matrix, `[vocab_size, hidden_size]`: the embedding's where they are tied.
    pub fn output_name(&self) -> String {
        if self.tie_word_embeddings { self.embedding_name() } else { self.own_output_name() }
    }

    /// The tensor name that the output matrix has where it is not the embedding.
    pub fn own_output_name(&self) -> String {
        format!("{}.weight", self.names.output)
    }

    /// The tensor name of the output matrix's bias, `[vocab_size]`, which exists where [`Architecture::output_bias`] says so.
    pub fn output_bias_name(&self) -> String {
        format!("{}.bias", self.names.output)
    }

    /// The tensor name of the learned positions, where there are some.
    pub fn positions_name(&self) -> Option<String> {
        self.positions.map(|p| format!("{}{}", self.names.prefix, p.name))
    }

    /// The last norm's module.
    pub fn final_norm_module(&self) -> String {
        format!("{}{}", self.names.prefix, self.names.final_norm)
    }

    /// A module of a block in full, without `.weight` or `.bias`.
    pub fn module(&self, block: usize, module: &str) -> String {
        format!("{}{}.{block}.{module}", self.names.prefix, self.names.blocks)
    }

    /// The tensors of the norm of queries or keys, whose module is `module` and which goes over `heads` heads.
    pub fn qk_norm_tensors(
        &self,
        norm: &QkNorm,
        block: usize,
        module: &str,
        heads: usize,
    ) -> Vec<TensorSpec> {
        let module = self.module(block, module);
        let one = |shape: Vec<usize>| vec![TensorSpec { name: format!("{module}.weight"), shape }];
        match norm.spread {
            QkSpread::Shared => one(vec![self.head_dim]),
            QkSpread::Matrix => one(vec![heads, self.head_dim]),
            QkSpread::Whole => one(vec![heads * self.head_dim]),
            QkSpread::Tensors => (0..heads)
                .map(|head| TensorSpec {
                    name: format!("{module}.norms.{head}.weight"),
                    shape: vec![self.head_dim],
                })
                .collect(),
        }
    }

    /// Every tensor that the model is made of as it is stored, in the order of the computation, each once.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.hidden_size;
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut all = vec![spec(self.embedding_name(), &[self.vocab_size, hidden])];
        if let (Some(positions), Some(name)) = (self.positions, self.positions_name()) {
            all.push(spec(name, &[self.max_position_embeddings + positions.offset, hidden]));
        }
        for block in 0..self.num_layers {
            self.block.norms().for_each(|module| all.extend(self.norm_tensors(&self.module(block, module))));
            if let Some(qk) = &self.qk_norm {
                all.extend(self.qk_norm_tensors(qk, block, qk.q, self.num_heads));
                all.extend(self.qk_norm_tensors(qk, block, qk.k, self.num_kv_heads));
            }
            let mut last = String::new();
            for p in self.kinds().map(|kind| self.projection(block, kind)) {
                // Parts of one tensor follow each other.
                if p.stored == last {
                    continue;
                }
                let outputs = p.place.part.map_or(p.rows, |part| part.of);
                let shape = if p.place.transposed { [p.cols, outputs] } else { [outputs, p.cols] };
                all.push(spec(p.stored.clone(), &shape));
                if self.has_bias(p.kind) {
                    all.push(spec(p.stored_bias(), &[outputs]));
                }
                last = p.stored;
            }
        }
        all.extend(self.head_tensors().into_iter().filter(|t| t.name != self.embedding_name()));
        all
    }

    /// Those of the last norm and of the output matrix.
    pub fn head_tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut all = self.norm_tensors(&self.final_norm_module());
        all.push(spec(self.output_name(), &[self.vocab_size, self.hidden_size]));
        if self.output_bias {
            all.push(spec(self.output_bias_name(), &[self.vocab_size]));
        }
        all
    }

    /// Those of a norm over the residual stream.
    pub(super) fn norm_tensors(&self, module: &str) -> Vec<TensorSpec> {
        let parts = [("weight", self.norm.gain != Gain::None), ("bias", self.norm.bias)];
        let there = parts.into_iter().filter(|(_, there)| *there);
        there
            .map(|(part, _)| TensorSpec { name: format!("{module}.{part}"), shape: vec![self.hidden_size] })
            .collect()
    }

    /// The projections and biases that are no stored tensor of their own, or lie transposed.
    pub fn parts(&self) -> Vec<TensorPart> {
        let mut all = Vec::new();
        for p in self.projections().into_iter().filter(|p| p.place.part.is_some() || p.place.transposed) {
            let (part, transposed) = (p.place.part, p.place.transposed);
            if part.is_some() && self.has_bias(p.kind) {
                let (name, stored) = (p.bias_name(), p.stored_bias());
                all.push(TensorPart { name, stored, shape: vec![p.rows], part, transposed: false });
            }
            let shape = vec![p.rows, p.cols];
            all.push(TensorPart { name: p.name, stored: p.stored, shape, part, transposed });
        }
        all
    }
}
