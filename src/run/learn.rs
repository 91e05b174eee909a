//! What learns, and the repairs that train: options, and the stages that they make.

use std::str::FromStr;

use clap::ArgAction::Set;
use serde::{Serialize, Serializer};

use super::RunError;
use super::method::{Method, Recipe};
use super::start::StartSpec;
use super::walk::RepairSpec;
use crate::kernel::{SoftPatterns, StateType};
use crate::mask::Pattern;
use crate::prune::OneShot;
use crate::prune::learn::{ModelLoss, Objective, Relaxing, Residency, Stage, TokenWeights, Trains};
use crate::prune::maskpro::{Estimator, Options};

/// "1:0.1": a number at the first and at the last step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Span(pub f32, pub f32);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse::<f32>().ok().filter(|v| v.is_finite() && *v > 0.0);
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) => Ok(Self(first, last)),
            _ => Err("two positive numbers FIRST:LAST are needed, or one".into()),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{}:{}", self.0, self.1))
    }
}

/// What learned methods have in common.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Learning")]
pub struct LearnSpec {
    /// What a learned mask minimises; several, with commas, follow each other [default: block, of maskllm and proxsparse model]
    #[arg(long, value_enum, value_delimiter = ',', action = Set, num_args = 1, value_name = "OBJECTIVE")]
    pub objective: Vec<Objective>,
    /// Loss of the model objective [default: kl, of maskllm and proxsparse lm]
    #[arg(long, value_enum)]
    pub loss: Option<ModelLoss>,
    /// Block objective: what the error of a token counts for
    #[arg(long, value_enum, default_value_t = TokenWeights::Even)]
    pub token_weights: TokenWeights,
    /// Steps of learning, in each block or on the model; a number for each objective, or one for all [default: 100, of maskllm 2000,
    /// of proxsparse 400, of maskpro 10000, or 2000 in a block, 100 in a layer]
    #[arg(long, value_name = "N", value_delimiter = ',', action = Set, num_args = 1)]
    pub steps: Vec<u32>,
    /// Learning rate, likewise; constant in maskpro, else it falls along a cosine [default: 0.1 in a block, 0.05 on the model,
    /// of maskllm 0.001, of proxsparse 0.0001, of maskpro 50, in a layer 0.5]
    #[arg(long, value_name = "RATE", value_delimiter = ',', action = Set, num_args = 1)]
    pub rate: Vec<f32>,
    /// Logits start at this times the start mask, likewise [default: 1, of maskpro 10, in a layer 1]
    #[arg(long, value_name = "SCALE", value_delimiter = ',', action = Set, num_args = 1)]
    pub logits: Vec<f32>,
    /// Windows of a minibatch, that is, of a step [default: 8, of maskpro 32]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// --joint, --repair block and model, proxsparse: steps over which the learning rate of the weights rises from 0 [default: 10 on
    /// the model, 0 in a block, of proxsparse 40]
    #[arg(long, value_name = "N")]
    pub warm_up: Option<u32>,
    /// Model objective: blocks all on the device, or one at a time [default: resident where --gpu-memory allows]
    #[arg(long, value_enum)]
    pub blocks: Option<Residency>,
    /// Seconds after which the state of training is kept, again and again, for --resume; 0: only on Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    pub keep_every: f64,
    /// Soft masks.
    #[command(flatten)]
    #[serde(flatten)]
    pub soft: SoftSpec,
    /// MaskPro.
    #[command(flatten)]
    #[serde(flatten)]
    pub maskpro: MaskProSpec,
    /// MaskLLM.
    #[command(flatten)]
    #[serde(flatten)]
    pub maskllm: MaskLlmSpec,
    /// proxsparse: lambda of the proximal operator; it depends on the model [default: 0.25]
    #[arg(long, value_name = "LAMBDA")]
    pub lambda: Option<f32>,
}

/// Masks that are soft on the way.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct SoftSpec {
    /// Temperature of the soft masks at the first and the last step of each objective [default: 1:0.05 in a block, 0.3:0.03 on the
    /// model, of maskllm 4:0.05]
    #[arg(long, value_name = "FIRST:LAST", value_delimiter = ',', action = Set, num_args = 1)]
    pub temperature: Vec<Span>,
    /// relaxed: how a soft top N is made of the logits [default: draws where N is at most 2, else fixed-size]
    #[arg(long, value_enum)]
    pub relaxation: Option<Relaxing>,
    /// relaxed, maskllm: scale of the Gumbel noise on the logits; of relaxed it falls to 0 over the steps [default: 0,
    /// of maskllm 1]
    #[arg(long, value_name = "SCALE", value_delimiter = ',', action = Set, num_args = 1)]
    pub noise: Vec<f32>,
    /// relaxed: logits and moments of the optimiser in 32 or in 16 bits
    #[arg(long, value_enum, default_value_t = StateType::F32)]
    pub state: StateType,
    /// Go on from the mask of --objective layer by exact group descent
    #[arg(long)]
    pub polish: bool,
    /// relaxed: train the weights with the mask in the last objective; the kept ones change
    #[arg(long)]
    pub joint: bool,
    /// Learning rate of the weights with --joint [default: 0.0005]
    #[arg(long, value_name = "RATE", requires = "joint")]
    pub weight_rate: Option<f32>,
}

/// MaskPro; the defaults are those of its released code.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct MaskProSpec {
    /// maskpro: advantage that multiplies the score
    #[arg(long, value_enum, default_value_t = Estimator::Tracked)]
    pub estimator: Estimator,
    /// maskpro: start logits from the scores of a magnitude or wanda start, this times ln(score / boundary) of each group, within
    /// half of --logits; close calls are then tried more often than clear ones [default: logits from the mask alone]
    #[arg(long, value_name = "T")]
    pub sharpness: Option<f32>,
    /// maskpro on the layer objective, M = 16: draws of each group in a step [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub draws: Option<u32>,
    /// maskpro: smoothing of the residual's moving average, from 0 to below 1 [default: 0.99]
    #[arg(long, value_name = "SHARE")]
    pub alpha: Option<f64>,
}

/// MaskLLM.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct MaskLlmSpec {
    /// maskllm: factor of the logits at the first and the last step [default: 100:500]
    #[arg(long, value_name = "FIRST:LAST")]
    pub kappa: Option<Span>,
    /// maskllm: strength of the start mask's prior [default: 3]
    #[arg(long, value_name = "ALPHA")]
    pub prior: Option<f32>,
    /// maskllm: weight of the squared norm of the kept weights, which the loss is lowered by [default: 0.00001]
    #[arg(long, value_name = "WEIGHT")]
    pub regulariser: Option<f32>,
}

fn first<T: Copy>(given: &[T], default: T) -> T {
    given.first().copied().unwrap_or(default)
}

/// Entry `i` of what was given for `count` stages: one for each, or one for all.
fn entry<T: Copy>(given: &[T], i: usize, count: usize, name: &str) -> Result<Option<T>, RunError> {
    match given.len() {
        0 => Ok(None),
        1 => Ok(Some(given[0])),
        n if n == count => Ok(Some(given[i])),
        n => Err(RunError::Options(format!(
            "{name} has {n} values for {count} stages; give one, or one for each"
        ))),
    }
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

impl LearnSpec {
    /// What `method` trains, if it learns by backpropagation or block by block.
    pub(super) fn trains(&self, method: Method) -> Option<Trains> {
        Some(match method {
            Method::Relaxed => Trains::Relaxed,
            Method::Maskllm => Trains::MaskLlm,
            Method::Proxsparse => Trains::ProxSparse,
            Method::Maskpro if self.objective.iter().any(|o| *o != Objective::Model) => Trains::MaskPro,
            _ => return None,
        })
    }

    /// Whether nothing but the layer objective is learned.
    pub(super) fn only_layer(&self) -> bool {
        self.objective == [Objective::Layer]
    }

    /// Windows of a minibatch of MaskPro on the model's loss, which start masks of the others are made in, too.
    pub(super) fn policy_batch(&self) -> usize {
        self.batch.unwrap_or(32)
    }

    /// MaskPro on the model's loss.
    pub(crate) fn policy(&self, pattern: Pattern, seed: u64) -> Options {
        Options {
            pattern,
            estimator: self.maskpro.estimator,
            steps: first(&self.steps, 10_000),
            rate: first(&self.rate, 50.0),
            scale: first(&self.logits, 10.0),
            sharpness: self.maskpro.sharpness,
            batch: self.policy_batch(),
            alpha: self.maskpro.alpha.unwrap_or(0.99),
            seed,
        }
    }

    /// Checks the numbers, and that `sharpness` has scores to read: it is for the policy gradient on the model's loss (`policy`) from a
    /// `start` that is scored.
    pub(crate) fn check(&self, policy: bool, start: &str) -> Result<(), RunError> {
        let bad = |what: &str| Err(RunError::options(what));
        let most = [self.steps.len(), self.rate.len(), self.logits.len()].into_iter().max();
        if policy && most > Some(1) {
            return bad(
                "maskpro on the model's loss is one stage: --steps, --rate and --logits take one value",
            );
        }
        if self.steps.contains(&0) || self.batch == Some(0) {
            return bad("--steps and --batch must be at least 1");
        }
        let positive = |v: &f32| v.is_finite() && *v > 0.0;
        if !(self.rate.iter().all(|v| v.is_finite()) && self.logits.iter().all(positive)) {
            return bad("--rate must be a number and --logits a positive one");
        }
        if !(0.0..1.0).contains(&self.maskpro.alpha.unwrap_or(0.99)) {
            return bad("--alpha must be at least 0 and below 1");
        }
        let sharpness = self.maskpro.sharpness;
        if sharpness.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
            return bad("--sharpness must be a positive number");
        }
        let scored = matches!(StartSpec::method(start), Some(OneShot::Magnitude | OneShot::Wanda));
        if sharpness.is_some() && !(policy && scored) {
            return bad(
                "--sharpness is for --method maskpro on the model's loss, from --start magnitude or wanda",
            );
        }
        if self.logits.iter().any(|v| *v > 100.0) {
            return bad("--logits must be at most 100: beyond it no other mask is ever drawn");
        }
        Ok(())
    }

    /// The objectives of `method`, in their order.
    fn objectives(&self, method: Method, recipe: Option<Recipe>) -> Result<Vec<Objective>, RunError> {
        let bad = |what: String| Err(RunError::Options(what));
        if self.trains(method).is_none() && !self.objective.is_empty() && method != Method::Maskpro {
            return bad(format!("--method {} has no --objective: it does not learn", method.name()));
        }
        if self.objective.contains(&Objective::Layer) && !matches!(method, Method::Relaxed | Method::Maskpro)
        {
            return bad(format!(
                "--objective layer is for --method relaxed and maskpro; {} takes block or model",
                method.name()
            ));
        }
        if self.objective.iter().skip(1).any(|o| *o == Objective::Layer) {
            return bad(
                "--objective layer comes first, as in layer,block: it goes on from the start mask".into()
            );
        }
        Ok(match (self.objective.as_slice(), recipe) {
            ([], Some(Recipe::Best)) => vec![Objective::Block, Objective::Model],
            ([], _) if matches!(method, Method::Maskllm | Method::Proxsparse) => vec![Objective::Model],
            ([], _) => vec![Objective::Block],
            (given, _) => given.to_vec(),
        })
    }

    /// The stages behind the start mask, or behind the one-shot mask.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub(super) fn stages(
        &self,
        (method, recipe): (Method, Option<Recipe>),
        pattern: Pattern,
        repair: &RepairSpec,
        seed: u64,
    ) -> Result<Vec<Stage>, RunError> {
        let (trains, repairs) = (self.trains(method), repair.trained());
        let objectives = self.objectives(method, recipe)?;
        if !(self.keep_every.is_finite() && self.keep_every >= 0.0) {
            return Err(RunError::options("--keep-every must be a number of at least 0"));
        }
        let joint = self.soft.joint;
        if joint && (trains != Some(Trains::Relaxed) || objectives.last() == Some(&Objective::Layer)) {
            return Err(RunError::options(
                "--joint is for --method relaxed on the block or the model objective",
            ));
        }
        let mut out = Vec::new();
        for (i, &objective) in objectives.iter().enumerate() {
            let (Some(trains), n) = (trains, objectives.len()) else {
                break;
            };
            let trains = if joint && i + 1 == n { Trains::Joint } else { trains };
            out.push(self.stage(Stage::new(pattern, trains, objective), i, n)?);
        }
        for (i, &objective) in repairs.iter().enumerate() {
            let mut stage = Stage::new(pattern, Trains::Weights, objective);
            let n = repairs.len();
            set(&mut stage.steps, entry(&repair.repair_steps, i, n, "--repair-steps")?);
            set(&mut stage.rate, entry(&repair.repair_rate, i, n, "--repair-rate")?);
            set(&mut stage.batch, self.batch);
            set(&mut stage.warm_up, self.warm_up);
            out.push(stage);
        }
        for stage in &mut out {
            stage.seed = seed;
            stage.tokens = self.token_weights;
            check(stage)?;
        }
        Ok(out)
    }

    fn stage(&self, mut stage: Stage, i: usize, n: usize) -> Result<Stage, RunError> {
        let (soft, maskllm) = (&self.soft, &self.maskllm);
        set(&mut stage.steps, entry(&self.steps, i, n, "--steps")?);
        set(&mut stage.rate, entry(&self.rate, i, n, "--rate")?);
        set(&mut stage.logits, entry(&self.logits, i, n, "--logits")?);
        set(&mut stage.weight_rate, soft.weight_rate);
        set(&mut stage.warm_up, self.warm_up);
        set(&mut stage.noise, entry(&soft.noise, i, n, "--noise")?);
        set(&mut stage.batch, self.batch);
        set(&mut stage.alpha, self.maskpro.alpha);
        set(&mut stage.draws, self.maskpro.draws);
        stage.polish = soft.polish && stage.objective == Objective::Layer;
        set(&mut stage.loss, self.loss);
        set(&mut stage.prior, maskllm.prior);
        set(&mut stage.regulariser, maskllm.regulariser);
        set(&mut stage.lambda, self.lambda);
        set(&mut stage.relaxation, soft.relaxation);
        let span = entry(&soft.temperature, i, n, "--temperature")?;
        set(&mut stage.temperature, span.map(|s| (s.0, s.1)));
        set(&mut stage.kappa, maskllm.kappa.map(|s| (s.0, s.1)));
        stage.state = soft.state;
        Ok(stage)
    }
}

fn check(stage: &Stage) -> Result<(), RunError> {
    let bad = |what: String| Err(RunError::Options(what));
    let pattern = stage.pattern;
    let positive = |v: f32| v.is_finite() && v > 0.0;
    if stage.steps == 0 || stage.batch == 0 {
        return bad("--steps and --batch must be at least 1".into());
    }
    if ![stage.rate, stage.weight_rate, stage.logits].into_iter().all(positive) {
        return bad("--rate, --weight-rate and --logits must be positive numbers".into());
    }
    let numbers = [stage.noise, stage.prior, stage.regulariser, stage.lambda];
    if numbers.iter().any(|v| !(v.is_finite() && *v >= 0.0)) {
        return bad("--noise, --prior, --regulariser and --lambda must be numbers of at least 0".into());
    }
    match stage.trains {
        Trains::ProxSparse if (pattern.n(), pattern.m()) != (2, 4) => {
            bad(format!("proxsparse has an operator for 2:4 only, not for {pattern}; use --method relaxed"))
        }
        Trains::MaskLlm if pattern.combinations() > SoftPatterns::MOST => bad(format!(
            "maskllm has a logit for each of the {} patterns of {pattern}, and 128 is the most; use --method relaxed",
            pattern.combinations()
        )),
        Trains::MaskPro if stage.objective == Objective::Model => {
            bad("of several objectives maskpro takes --objective layer and block, or model alone".into())
        }
        Trains::Relaxed | Trains::Joint if !stage.relaxation.offers(pattern) => bad(format!(
            "--relaxation draws is for N of at most 2, not for {pattern}; use --relaxation fixed-size"
        )),
        _ if stage.state == StateType::F16 && !matches!(stage.trains, Trains::Relaxed) => {
            bad("--state f16 is for --method relaxed without --joint".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    /// The numbers that help texts give as defaults are those of the stages.
    #[test]
    fn help_tells_the_defaults_of_stages() {
        let command = RepairSpec::augment_args(LearnSpec::augment_args(clap::Command::new("stages")));
        let help = |option: &str| {
            let arg = command.get_arguments().find(|a| a.get_long() == Some(option)).expect("an option");
            let help = arg.get_help().expect("a help text").to_string();
            help.split_once("[default: ").expect("a default").1.to_string()
        };
        let pattern = Pattern::new(2, 4).expect("a pattern");
        let repair = Stage::new(pattern, Trains::Weights, Objective::Model);
        let all = [Trains::Relaxed, Trains::MaskLlm, Trains::ProxSparse, Trains::MaskPro];
        let of = |t| [(t, Objective::Block), (t, Objective::Model), (t, Objective::Layer)];
        for (trains, objective) in all.into_iter().flat_map(of) {
            let stage = Stage::new(pattern, trains, objective);
            let told = |option: &str, value: String| {
                let defaults = help(option);
                let mut words = defaults.split(|c: char| " ,]".contains(c));
                assert!(words.any(|word| word == value), "--{option}: {value} is not in {defaults}");
            };
            let span = |(first, last): (f32, f32)| format!("{first}:{last}");
            told("steps", stage.steps.to_string());
            told("rate", stage.rate.to_string());
            told("logits", stage.logits.to_string());
            told("batch", stage.batch.to_string());
            told("noise", stage.noise.to_string());
            told("temperature", span(stage.temperature));
            told("weight-rate", stage.weight_rate.to_string());
            let warm = if stage.warm_up == 0 { repair.warm_up } else { stage.warm_up };
            told("warm-up", warm.to_string());
            told("alpha", stage.alpha.to_string());
            told("draws", stage.draws.to_string());
            match trains {
                Trains::MaskLlm => {
                    told("kappa", span(stage.kappa));
                    told("prior", stage.prior.to_string());
                    told("regulariser", stage.regulariser.to_string());
                }
                Trains::ProxSparse => told("lambda", stage.lambda.to_string()),
                _ => {}
            }
        }
        assert!(help("repair-steps").contains(&repair.steps.to_string()));
        assert!(help("repair-rate").contains(&repair.rate.to_string()));
    }

    #[test]
    fn spans_and_lists() {
        assert_eq!("1:0.1".parse(), Ok(Span(1.0, 0.1)));
        assert_eq!("0.5".parse(), Ok(Span(0.5, 0.5)));
        for bad in ["", "1:", "a", "1:-1", "0", "nan", "1:2:3"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(entry(&[1, 2], 1, 2, "--x").expect("one for each"), Some(2));
        assert_eq!(entry(&[1], 1, 2, "--x").expect("one for all"), Some(1));
        assert!(entry(&[1, 2], 0, 3, "--x").is_err());
    }
}
