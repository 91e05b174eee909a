//! The families: each file turns a config.json into an [`Architecture`] and names the tensors. Nothing outside this folder asks
//! which family a model is of.

mod harmless;
mod keys;
mod rope;
mod seeing;

mod cohere;
mod cohere2;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod ministral;
mod ministral3;
mod mistral;
mod mistral3;
mod olmo;
mod olmo2;
mod olmo3;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod stablelm;
mod starcoder2;

use keys::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH};

pub(super) use keys::Keys;

use super::architecture::{
    Architecture, AttentionShape, BlockShape, FeedForward, Gain, LayerShape, Names, NormShape, QkNorm,
    QkSpread, RotaryShape, Scales,
};
use super::ends::token_ids;
use super::{ActivationKind, ModelError, NormKind, PlaceInTensor, ProjectionKind, stored_plain};

/// A family of models.
pub(super) struct Family {
    /// Its `model_type`.
    pub(super) name: &'static str,
    /// Makes the description.
    read: fn(Keys<'_>) -> Result<Architecture, ModelError>,
}

/// All, in the order of the documentation.
const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    ministral::FAMILY,
    ministral3::FAMILY,
    mistral3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::TEXT,
    gemma3::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    olmo::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
    cohere::FAMILY,
    cohere2::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    gpt_neox::FAMILY,
    gpt2::FAMILY,
    opt::FAMILY,
];

/// The `model_type`s, for messages.
pub(super) fn known() -> String {
    FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

/// The `model_type`s of all supported families.
pub fn family_names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.name)
}

/// The architecture that a config.json describes.
///
/// # Errors
/// A family or a feature that is not supported; a key that is missing, of a wrong value, or not understood.
pub(super) fn read(keys: Keys<'_>) -> Result<Architecture, ModelError> {
    if let Some(Err(how)) = keys.get("quantization_config").map(stored_plain) {
        let what = format!("a quantized model (`quantization_config`: {how})");
        return Err(keys.unsupported(what, "use an unquantized copy of the model (F32, F16 or BF16)"));
    }
    let name = keys.model_type()?;
    match FAMILIES.iter().find(|f| f.name == name) {
        Some(family) => (family.read)(keys),
        None => Err(keys.unknown_family(name)),
    }
}

/// What [`base`] takes where the file does not say, by the family's configuration class in transformers.
struct Defaults {
    /// The key of the norms' epsilon, where the family has one, and its value.
    eps: (Option<&'static str>, f64),
    /// The key of the nonlinearity and its value.
    activation: (&'static str, ActivationKind),
    /// The rotary embeddings.
    rope: Ropes,
    /// Whether the output matrix is the embedding.
    tied: bool,
    /// Whether heads may have another size than `hidden_size / num_attention_heads`.
    free_heads: bool,
    /// Whether several query heads may share a key and value head.
    grouped: bool,
    /// How many times as wide as the residual stream the feed-forward layer is. Without it the file must say.
    times: Option<usize>,
}

/// The rotary embeddings of a family.
enum Ropes {
    /// It has none.
    None,
    /// One for all blocks.
    One {
        /// Its base.
        theta: f64,
        /// The share of a head's features that turns. Without it all do, and the file may not say otherwise.
        partial: Option<f64>,
        /// Keys of the object that the family reads itself.
        own: &'static [&'static str],
    },
    /// One for the blocks of full attention and one for those with a window.
    ByKind {
        /// The base of the first.
        full: f64,
        /// The base of the second and its key beside `rope_parameters`.
        sliding: (Option<&'static str>, f64),
    },
}

impl Ropes {
    /// One that turns all features of every head.
    const fn all(theta: f64) -> Self {
        Self::One { theta, partial: None, own: &[] }
    }

    /// One that turns the first ones.
    const fn part(theta: f64, partial: f64) -> Self {
        Self::One { theta, partial: Some(partial), own: &[] }
    }
}

impl Defaults {
    /// Those of Llama, which many share.
    const LLAMA: Self = Self {
        eps: (Some("rms_norm_eps"), 1e-6),
        activation: ("hidden_act", ActivationKind::Silu),
        rope: Ropes::all(10_000.0),
        tied: false,
        free_heads: true,
        grouped: true,
        times: None,
    };
}

/// Where the projections of a Llama lie.
const LLAMA_PLACES: [Option<PlaceInTensor>; ProjectionKind::ALL.len()] = [
    Some(PlaceInTensor::whole("self_attn.q_proj")),
    Some(PlaceInTensor::whole("self_attn.k_proj")),
    Some(PlaceInTensor::whole("self_attn.v_proj")),
    Some(PlaceInTensor::whole("self_attn.o_proj")),
    Some(PlaceInTensor::whole("mlp.gate_proj")),
    Some(PlaceInTensor::whole("mlp.up_proj")),
    Some(PlaceInTensor::whole("mlp.down_proj")),
];

/// The prefixes of models of which the language model is the whole or a part, with the module of the output matrix.
const USUAL_PREFIXES: &[(&str, &str)] = &[
    ("model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("model.language_model.", "lm_head"),
    ("", "lm_head"),
];

/// Those of q, k and v.
const QKV: [ProjectionKind; 3] = [ProjectionKind::Q, ProjectionKind::K, ProjectionKind::V];

/// A Llama with the sizes of the file: the families alter what is different in them.
fn base(keys: &Keys<'_>, family: &'static str, defaults: &Defaults) -> Result<Architecture, ModelError> {
    let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
    let num_heads = keys.size("num_attention_heads", MAX_HEADS)?;
    let num_kv_heads = match defaults.grouped {
        true => keys.size_or("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_heads),
        false => num_heads,
    };
    if !num_heads.is_multiple_of(num_kv_heads) {
        let expected = format!("a divisor of `num_attention_heads`, {num_heads}");
        return Err(keys.wrong("num_key_value_heads", expected, num_kv_heads));
    }
    let head_dim = head_dim(keys, hidden_size, num_heads, defaults.free_heads)?;
    let (eps_key, eps) = defaults.eps;
    let eps = eps_key.map(|key| keys.number(key)).transpose()?.flatten().unwrap_or(eps);
    if !(eps > 0.0 && eps < 0.1) {
        return Err(keys.wrong(eps_key.unwrap_or(""), "between 0 and 0.1".into(), eps));
    }
    let (activation_key, activation) = defaults.activation;
    let num_layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let intermediate_size = match (keys.size_or("intermediate_size", MAX_WIDTH)?, defaults.times) {
        (Some(size), _) => size,
        (None, Some(times)) => times * hidden_size,
        (None, None) => keys.size("intermediate_size", MAX_WIDTH)?,
    };
    let mut out = Architecture {
        family,
        vocab_size: keys.size("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        norm: NormShape { kind: NormKind::Rms, eps: eps as f32, gain: Gain::Plain, bias: false },
        block: BlockShape::before("input_layernorm", "post_attention_layernorm"),
        qk_norm: None,
        feed_forward: FeedForward { gated: true, activation: keys.activation(activation_key, activation)? },
        attention: AttentionShape {
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            cap: None,
            clip: None,
            growth: None,
        },
        layers: vec![LayerShape { window: None, rope: None }; num_layers],
        ropes: Vec::new(),
        rotary: RotaryShape { turned: 0, interleaved: false },
        positions: None,
        scales: Scales::default(),
        logit_cap: None,
        biases: Vec::new(),
        output_bias: false,
        tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.tied)?,
        bound: Vec::new(),
        max_position_embeddings: keys.size("max_position_embeddings", MAX_POSITIONS)?,
        bos_token_id: token_ids(keys.get("bos_token_id")).first().copied(),
        eos_token_ids: token_ids(keys.get("eos_token_id")),
        dtype: keys.dtype(),
        names: Names {
            prefix: "model.".into(),
            prefixes: USUAL_PREFIXES,
            embedding: "embed_tokens.weight",
            final_norm: "norm",
            output: "lm_head".into(),
            blocks: "layers",
            places: LLAMA_PLACES,
        },
    };
    out.set_ropes(keys, &defaults.rope)?;
    Ok(out)
}

/// Features of a head.
fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize, free: bool) -> Result<usize, ModelError> {
    let given = keys.size_or("head_dim", MAX_HEAD_DIM)?;
    let shared = hidden.is_multiple_of(heads).then_some(hidden / heads);
    let head_dim = match (given, shared) {
        (Some(given), _) if free => given,
        (None, Some(shared)) => shared,
        (Some(given), Some(shared)) if given == shared => shared,
        (Some(given), Some(shared)) => {
            let expected = format!("`hidden_size` / `num_attention_heads`, {shared}, in this family");
            return Err(keys.wrong("head_dim", expected, given));
        }
        (_, None) => {
            let expected = format!("a divisor of `hidden_size`, {hidden}, as `head_dim` is not given");
            return Err(keys.wrong("num_attention_heads", expected, heads));
        }
    };
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        return Err(keys.wrong("head_dim", format!("even and at most {MAX_HEAD_DIM}"), head_dim));
    }
    Ok(head_dim)
}

/// Whether each block's attention is a sliding one: by `layer_types`, or by `otherwise` where the file has none.
fn sliding(
    keys: &Keys<'_>,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let Some(types) = keys.names("layer_types", layers)? else {
        return Ok((0..layers).map(otherwise).collect());
    };
    let one = |name: &&str| match *name {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        odd => {
            let remedy = "only full_attention and sliding_attention are";
            Err(keys.unsupported(format!("the layer type {odd:?}"), remedy))
        }
    };
    types.iter().map(one).collect()
}

/// The layer that follows `every - 1` others of the other kind, as in `every` = 4: not, not, not, yes.
fn is_last_of(every: usize) -> impl Fn(usize) -> bool {
    move |block| (block + 1).is_multiple_of(every)
}

/// The end of every family: nothing may be left that was not understood.
fn finish(keys: &Keys<'_>, out: Architecture) -> Result<Architecture, ModelError> {
    keys.refuse_unread(harmless::KEYS)?;
    Ok(out)
}

impl Architecture {
    /// Reads the rotary embeddings and gives all blocks the first one.
    fn set_ropes(&mut self, keys: &Keys<'_>, ropes: &Ropes) -> Result<(), ModelError> {
        match *ropes {
            Ropes::None => return Ok(()),
            Ropes::One { theta, partial, own } => {
                let part = keys.rope_part()?;
                self.rotary.turned = part.turned(self.head_dim, partial)?;
                self.ropes.push(part.rope(self, Some("rope_theta"), theta, own)?);
            }
            Ropes::ByKind { full, sliding: (key, sliding) } => {
                let of_full = keys.rope_part_of("full_attention")?;
                let of_sliding = keys.rope_part_of("sliding_attention")?;
                self.rotary.turned = of_full.turned(self.head_dim, None)?;
                of_sliding.turned(self.head_dim, None)?;
                self.ropes.push(of_full.rope(self, Some("rope_theta"), full, &[])?);
                self.ropes.push(of_sliding.rope(self, key, sliding, &[])?);
            }
        }
        self.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
        Ok(())
    }

    /// Gives the blocks that slide a window of `window` keys, and the second rotary embedding where there are two.
    fn set_windows(
        &mut self,
        keys: &Keys<'_>,
        window: Option<usize>,
        sliding: &[bool],
    ) -> Result<(), ModelError> {
        if window.is_none() && sliding.contains(&true) {
            return Err(keys.wrong(
                "sliding_window",
                "a number of tokens, as there are blocks that slide".into(),
                "nothing",
            ));
        }
        for (layer, slides) in self.layers.iter_mut().zip(sliding) {
            if *slides {
                layer.window = window;
                layer.rope = layer.rope.map(|_| self.ropes.len() - 1);
            }
        }
        Ok(())
    }

    /// Gives all blocks the window `window`, in families that do not heed `layer_types`: where the file has it all the same, it must say so.
    fn set_window(&mut self, keys: &Keys<'_>, window: Option<usize>) -> Result<(), ModelError> {
        let said = sliding(keys, self.num_layers, |_| window.is_some())?;
        if window.is_some() && said.contains(&false) {
            let remedy = "in this family all blocks slide or none; remove it from config.json";
            return Err(keys.unsupported("`layer_types` with blocks that do not slide", remedy));
        }
        self.layers.iter_mut().for_each(|layer| layer.window = window);
        Ok(())
    }

    /// `attention_bias`: whether queries, keys, values and the attention's output have biases.
    fn set_attention_bias(&mut self, keys: &Keys<'_>) -> Result<(), ModelError> {
        if keys.flag("attention_bias", false)? {
            self.biases.extend(QKV);
            self.biases.push(ProjectionKind::O);
        }
        Ok(())
    }

    /// `mlp_bias`: whether the feed-forward layer has biases.
    fn set_mlp_bias(&mut self, keys: &Keys<'_>) -> Result<(), ModelError> {
        if keys.flag("mlp_bias", false)? {
            self.biases.extend([ProjectionKind::Gate, ProjectionKind::Up, ProjectionKind::Down]);
        }
        Ok(())
    }

    /// Norms that take the mean away, with gains and perhaps biases.
    fn set_layer_norm(&mut self, bias: bool) {
        self.norm = NormShape { kind: NormKind::Layer, bias, ..self.norm };
    }

    /// A norm of queries and keys, with the epsilon and the gains of the other norms.
    fn set_qk_norm(&mut self, spread: QkSpread, q: &'static str, k: &'static str) {
        let NormShape { kind, eps, gain, .. } = self.norm;
        self.qk_norm = Some(QkNorm { kind, eps, gain, spread, q, k });
    }

    /// A feed-forward layer without a gate, whose two projections are these modules.
    fn set_two_layers(&mut self, up: PlaceInTensor, down: PlaceInTensor) {
        self.feed_forward.gated = false;
        self.names.set(&[(ProjectionKind::Up, up), (ProjectionKind::Down, down)]);
        self.names.places[ProjectionKind::Gate as usize] = None;
    }

    /// Gate and up projection as the rows of one tensor, in this order.
    fn fuse_gate_and_up(&mut self, module: &'static str) {
        let (rows, of) = (self.intermediate_size, 2 * self.intermediate_size);
        let place = |first| PlaceInTensor::rows(module, first, rows, of);
        self.names.set(&[(ProjectionKind::Gate, place(0)), (ProjectionKind::Up, place(rows))]);
    }
}

impl Names {
    /// Where these projections lie.
    fn set(&mut self, places: &[(ProjectionKind, PlaceInTensor)]) {
        for (kind, place) in places {
            self.places[*kind as usize] = Some(*place);
        }
    }

    /// Other prefixes, the first of which is that of the published files.
    fn set_prefixes(&mut self, prefixes: &'static [(&'static str, &'static str)]) {
        self.prefixes = prefixes;
        if let Some((prefix, output)) = prefixes.first() {
            (self.prefix, self.output) = ((*prefix).into(), (*output).into());
        }
    }
}
