//! What is learned by backpropagation, on which loss, and with which schedules.

use serde::{Deserialize, Serialize};

use crate::kernel::{Adam, Relaxation, StateType};
use crate::mask::Pattern;
use crate::nn::Sizes;
use crate::prune::PruneError;

/// What a stage trains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trains {
    /// One logit per weight through a soft top N (the parametrisation of MaskPro, arXiv 2506.12876, trained as RoI, arXiv 2608.23048, does).
    Relaxed,
    /// One logit per pattern through a Gumbel softmax (MaskLLM, arXiv 2409.17481).
    MaskLlm,
    /// The weights under the 2:4 regulariser, whose largest then give the mask (ProxSparse, arXiv 2502.00258).
    ProxSparse,
    /// One logit per weight, forward only (MaskPro): by policy gradient on the loss of masks that are drawn; on [`Objective::Layer`] by the
    /// gradient of the expected error.
    MaskPro,
    /// The kept weights under a fixed mask.
    Weights,
    /// What [`Trains::Relaxed`] trains and all weights with it, of which the kept ones stay.
    Joint,
}

impl Trains {
    /// Whether the stage ends with another mask.
    pub fn masks(self) -> bool {
        self != Self::Weights
    }

    /// Whether the stage ends with other weights.
    pub fn weights(self) -> bool {
        matches!(self, Self::Weights | Self::Joint)
    }

    /// Whether masks are soft on the way.
    fn soft(self) -> bool {
        self.relaxed() || self == Self::MaskLlm
    }

    /// Whether there are logits; else weights alone.
    pub fn logits(self) -> bool {
        !matches!(self, Self::ProxSparse | Self::Weights)
    }

    /// Whether there is one logit per weight, through a soft top N.
    pub(super) fn relaxed(self) -> bool {
        matches!(self, Self::Relaxed | Self::Joint)
    }
}

/// What a stage minimises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The output of each block, fed by the pruned blocks before it, against that of the dense block fed by dense blocks
    Block,
    /// The loss of the whole model
    Model,
    /// The output of each projection, in the metric of its Gram matrix
    Layer,
}

/// What the error of a token counts for on the block objective. In language models a few tokens, which others attend to where they have
/// nothing to look for, carry residual streams of norms a hundred times the others'; most of a plain squared error is theirs
/// (docs/experiments.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TokenWeights {
    /// All tokens alike
    Even,
    /// By one over the energy of the dense stream behind the block
    Stream,
    /// Tokens whose update is ten times the median one and more, and the others, each class by one over its energy
    Classes,
}

/// The loss of the whole model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModelLoss {
    /// Cross-entropy of the next token of the text
    Lm,
    /// KL divergence of the dense model's next-token distribution from the pruned model's
    Kl,
}

/// How a soft top N is made of the logits ([`Relaxation`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Relaxing {
    /// Inclusion probabilities of a random subset of N weights, of the law of greatest entropy
    FixedSize,
    /// Inclusion probabilities of N draws without replacement; N at most 2
    Draws,
    /// N softmaxes, log(1 - mu) / temperature added in between
    Rounds,
    /// N softmaxes, log(1 - mu) added in between: not hard when cold
    RoundsPlain,
}

impl Relaxing {
    /// The default for a pattern.
    pub fn of(pattern: Pattern) -> Self {
        if pattern.n() <= Relaxation::MOST_DRAWS { Self::Draws } else { Self::FixedSize }
    }

    /// Whether the kernels have it for a pattern.
    pub fn offers(self, pattern: Pattern) -> bool {
        self != Self::Draws || pattern.n() <= Relaxation::MOST_DRAWS
    }

    fn at(self, temperature: f64) -> Relaxation {
        match self {
            Self::FixedSize => Relaxation::FixedSize,
            Self::Draws => Relaxation::Draws,
            Self::Rounds => Relaxation::Rounds { removal: (1.0 / temperature) as f32 },
            Self::RoundsPlain => Relaxation::Rounds { removal: 1.0 },
        }
    }
}

/// One stage of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Stage {
    /// Keep N of M.
    pub pattern: Pattern,
    /// What is trained.
    pub trains: Trains,
    /// On what.
    pub objective: Objective,
    /// Loss of the model objective.
    pub loss: ModelLoss,
    /// [`Objective::Block`]: what the error of a token counts for.
    pub tokens: TokenWeights,
    /// Steps: of each block, or of the model.
    pub steps: u32,
    /// Windows of a minibatch.
    pub batch: usize,
    /// Learning rate of the logits, or of the weights, at the first step; it falls to `last_rate` times
    /// that along a cosine.
    pub rate: f32,
    /// [`Trains::Joint`]: learning rate of the weights at the first step; it falls in the same way.
    pub weight_rate: f32,
    /// Share of the rate at the end.
    pub last_rate: f32,
    /// Steps over which the rate of weights under training rises from 0; logits have their whole rate from the first step.
    pub warm_up: u32,
    /// Decay of the two moments.
    pub betas: (f32, f32),
    /// What is added to the root of the second moment.
    pub epsilon: f32,
    /// Weight decay (decoupled).
    pub decay: f32,
    /// Logits start at this where the start mask keeps a weight, and at 0 elsewhere.
    pub logits: f32,
    /// Temperature at the first and at the last step, geometric between (linear for [`Trains::MaskLlm`]).
    pub temperature: (f32, f32),
    /// How a soft top N is made of the logits.
    pub relaxation: Relaxing,
    /// Scale of the Gumbel noise on the logits at the first step; it falls linearly to 0.
    pub noise: f32,
    /// MaskLLM: factor of the logits, at the first and at the last step, linear between.
    pub kappa: (f32, f32),
    /// MaskLLM: strength of the start mask's prior.
    pub prior: f32,
    /// MaskLLM: weight of the kept weights' squared norm, which the loss is lowered by.
    pub regulariser: f32,
    /// ProxSparse: lambda of the proximal operator.
    pub lambda: f32,
    /// MaskPro: smoothing of the residual's moving average.
    pub alpha: f64,
    /// MaskPro on [`Objective::Layer`]: draws of each group in a step where M is above
    /// [`Drawn::EXACT`](crate::kernel::Drawn::EXACT).
    pub draws: u32,
    /// [`Objective::Layer`]: whether exact group descent goes on from the mask that is learned.
    pub polish: bool,
    /// How logits and moments are kept.
    pub state: StateType,
    /// Seed of the order of the windows and of all noise.
    pub seed: u64,
    /// As of [`OneShotOptions`](crate::prune::OneShotOptions): whether weights that their stored type cannot hold become its largest number.
    #[serde(skip)]
    pub clamp: bool,
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The optimiser of the logits, or of the weights.
    pub adam: Adam,
    /// [`Trains::Joint`]: the optimiser of the weights.
    pub weights: Adam,
    /// Temperature of the soft masks.
    pub temperature: f32,
    /// How a soft top N is made.
    pub relaxation: Relaxation,
    /// Scale of the Gumbel noise.
    pub noise: f32,
    /// MaskLLM's factor.
    pub kappa: f32,
    /// Weight of the regulariser.
    pub regulariser: f32,
}

impl Stage {
    /// Temperature of the soft masks at a step, where there are any.
    pub(super) fn temperature_at(&self, step: u32) -> Option<f64> {
        self.trains.soft().then(|| f64::from(self.at(step).temperature))
    }

    /// The defaults of the command line for `trains` on `objective`; docs/experiments.md has where they come from.
    pub fn new(pattern: Pattern, trains: Trains, objective: Objective) -> Self {
        let model = objective == Objective::Model;
        let relaxed = Self {
            pattern,
            trains,
            objective,
            loss: ModelLoss::Kl,
            tokens: TokenWeights::Even,
            steps: 100,
            batch: 8,
            rate: if model { 0.05 } else { 0.1 },
            weight_rate: 5e-4,
            last_rate: 0.0,
            warm_up: 0,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            decay: 0.0,
            logits: 1.0,
            // A mask that is learned already starts colder.
            temperature: if model { (0.3, 0.03) } else { (1.0, 0.05) },
            relaxation: Relaxing::of(pattern),
            noise: 0.0,
            kappa: (1.0, 1.0),
            prior: 0.0,
            regulariser: 0.0,
            lambda: 0.0,
            alpha: 0.99,
            draws: 4,
            polish: false,
            state: StateType::F32,
            seed: 0,
            clamp: false,
        };
        // Adam's first steps move every weight by the whole rate: a setback for the loss of the model, a good start for a block's.
        let warm_up = if model { 10 } else { 0 };
        match trains {
            Trains::Relaxed => relaxed,
            Trains::Joint => Self { warm_up, ..relaxed },
            // Section 4 and appendix of the paper and its code; the rate for small models.
            Trains::MaskLlm => Self {
                loss: ModelLoss::Lm,
                steps: 2000,
                rate: 1e-3,
                last_rate: 0.1,
                betas: (0.9, 0.95),
                epsilon: 1e-5,
                decay: 0.1,
                temperature: (4.0, 0.05),
                noise: 1.0,
                kappa: (100.0, 500.0),
                prior: 3.0,
                regulariser: 1e-5,
                ..relaxed
            },
            // 400 samples of 4096 tokens one by one; lambda depends on the model: 0.2 to 25 there.
            Trains::ProxSparse => Self {
                loss: ModelLoss::Lm,
                steps: 400,
                rate: 1e-4,
                warm_up: 40,
                decay: 0.01,
                lambda: 0.25,
                ..relaxed
            },
            // At 1 rows of the last blocks overshoot, at a quarter 100 steps are too few (docs/maskpro.md).
            Trains::MaskPro if objective == Objective::Layer => Self { rate: 0.5, last_rate: 1.0, ..relaxed },
            Trains::MaskPro => Self { rate: 50.0, last_rate: 1.0, logits: 10.0, steps: 2000, ..relaxed },
            Trains::Weights => Self { rate: 1e-3, warm_up, ..relaxed },
        }
    }

    /// The numbers of step `step`, from 0.
    pub fn at(&self, step: u32) -> At {
        let last = self.steps.saturating_sub(1).max(1);
        let along = (f64::from(step) / f64::from(last)).min(1.0);
        let linear = |(from, to): (f32, f32)| f64::from(from) + (f64::from(to) - f64::from(from)) * along;
        let (hot, cold) = (f64::from(self.temperature.0), f64::from(self.temperature.1));
        let temperature = match self.trains {
            Trains::MaskLlm => linear(self.temperature),
            _ => hot * (cold / hot).powf(along),
        };
        // The rate reaches its end behind the last step, so that no step is without effect.
        let done = f64::from(step) / f64::from(self.steps.max(1));
        let low = f64::from(self.last_rate);
        let warm = (f64::from(step + 1) / f64::from(self.warm_up.max(1))).min(1.0);
        let fall = low + (1.0 - low) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        let adam = |rate: f32, warm: f64| Adam {
            rate: (f64::from(rate) * fall * warm) as f32,
            beta1: self.betas.0,
            beta2: self.betas.1,
            eps: self.epsilon,
            decay: self.decay,
            step: step + 1,
        };
        At {
            adam: adam(self.rate, if self.trains.logits() { 1.0 } else { warm }),
            weights: adam(self.weight_rate, warm),
            temperature: temperature as f32,
            relaxation: self.relaxation.at(temperature),
            noise: (f64::from(self.noise) * if self.trains == Trains::MaskLlm { 1.0 } else { 1.0 - along })
                as f32,
            kappa: linear(self.kappa) as f32,
            regulariser: (f64::from(self.regulariser) * (1.0 - done)) as f32,
        }
    }
}

/// Where blocks are while others are at work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// All on the device
    Resident,
    /// One at a time on the device
    Streamed,
}

impl Stage {
    /// Parts in which a minibatch goes through a block.
    ///
    /// # Errors
    /// [`PruneError::Batch`] where the windows of a batch do not divide it.
    pub fn parts(&self, sizes: &Sizes) -> Result<usize, PruneError> {
        let together = sizes.layout.windows;
        if !self.batch.is_multiple_of(together) {
            return Err(PruneError::Batch { batch: self.batch, together });
        }
        Ok(self.batch / together)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_and_end_where_they_should() {
        let pattern = Pattern::new(2, 4).expect("a pattern");
        let stage = Stage { noise: 0.5, ..Stage::new(pattern, Trains::Relaxed, Objective::Block) };
        let (first, last) = (stage.at(0), stage.at(99));
        assert_eq!((first.adam.rate, first.temperature, first.noise), (0.1, 1.0, 0.5));
        assert!(last.adam.rate > 0.0 && last.adam.rate < 1e-4);
        assert!((last.temperature - 0.05).abs() < 1e-6 && last.noise == 0.0);
        assert_eq!((stage.relaxation, last.relaxation), (Relaxing::Draws, Relaxation::Draws));
        let rounds = |relaxation| match (Stage { relaxation, ..stage.clone() }.at(99).relaxation) {
            Relaxation::Rounds { removal } => removal,
            other => panic!("{other:?}"),
        };
        assert!((rounds(Relaxing::Rounds) - 20.0).abs() < 1e-4 && rounds(Relaxing::RoundsPlain) == 1.0);
        let wide = Pattern::new(4, 8).expect("a pattern");
        assert_eq!(Stage::new(wide, Trains::Relaxed, Objective::Block).relaxation, Relaxing::FixedSize);
        assert!(Relaxing::Draws.offers(pattern) && !Relaxing::Draws.offers(wide));
        let maskllm = Stage::new(pattern, Trains::MaskLlm, Objective::Model);
        let (first, last) = (maskllm.at(0), maskllm.at(1999));
        assert_eq!((first.temperature, first.kappa, first.noise), (4.0, 100.0, 1.0));
        assert!((last.temperature - 0.05).abs() < 1e-6 && (last.kappa - 500.0).abs() < 1e-3);
        assert_eq!(last.noise, 1.0);
        let prox = Stage::new(pattern, Trains::ProxSparse, Objective::Model);
        assert!(prox.at(0).adam.rate < prox.at(39).adam.rate);
        // Where both are trained, weights begin slowly and logits do not.
        let joint = Stage::new(pattern, Trains::Joint, Objective::Model);
        assert_eq!((joint.at(0).adam.rate, joint.at(0).weights.rate), (joint.rate, joint.weight_rate / 10.0));
        assert!(joint.at(9).weights.rate > 0.9 * joint.weight_rate);
        let repair = Stage::new(pattern, Trains::Weights, Objective::Block);
        assert_eq!(repair.at(0).adam.rate, repair.rate);
    }
}
