//! A run, resolved: the model opened, the texts read, contradictions refused, memory counted. Nothing is written yet.

use std::path::{Path, PathBuf};

use super::calib::CalibChoice;
use super::model::Model;
use super::order_kept::Order;
use super::permuted::PermutationSpec;
use super::readers::Readers;
use super::spec::{RunSpec, Stages};
use super::stage_flow::StagePlans;
use super::stage_plan::{StagePlan, Stored};
use super::start::StartSpec;
use super::{Observer, RunError, model_folder, permuted};
use crate::calib::Windows;
use crate::eval::Streamed;
use crate::export::hf;
use crate::hub::Need;
use crate::kernel::Kernels;
use crate::mask::Provenance;
use crate::model::{Architecture, Checkpoint, Dtype};
use crate::nn::{DecoderWeights, Embedding, MemoryPlan, PlanItem, total};
use crate::prune::learn::Stage;
use crate::prune::maskpro;
use crate::prune::plan::{self, Carried, WalkPlan};
use crate::prune::{OneShotOptions, Selection};

/// What is known of the model.
enum Source {
    Files(Model),
    /// Its config.json alone, and the type that it names.
    Shape {
        config: Architecture,
        dtype: Dtype,
        folder: PathBuf,
    },
}

/// A run that can be planned, and where the model's files are there, executed.
pub struct RunPlan<'o> {
    pub(super) spec: RunSpec,
    pub(super) observer: &'o dyn Observer,
    source: Source,
    pub(super) selection: Selection,
    pub(super) choice: CalibChoice,
    pub(super) calib: Option<Windows>,
    pub(super) eval: Option<(Windows, usize)>,
    pub(super) stages: Stages,
    pub(super) options: Option<OneShotOptions>,
    /// Whether a text is looked at.
    needs_text: bool,
    /// The order that the channels of the model were put into.
    pub(super) order: Option<Order>,
}

/// What a run takes on a device.
pub struct Resources {
    /// The walk over the blocks, or that which makes a start mask.
    pub walk: Option<WalkPlan>,
    /// How its windows are carried.
    pub(super) carried: Option<Carried>,
    /// What learns behind it.
    pub stages: Vec<StagePlan>,
    /// The evaluation at the end.
    pub measuring: Option<MemoryPlan>,
}

impl Resources {
    /// The largest of the plans: they follow each other.
    pub fn largest(&self) -> &[PlanItem] {
        let walk = self.walk.as_ref().map(|w| &w.gpu[..]);
        let all = walk.into_iter().chain(self.stages.iter().map(|s| &s.gpu[..]));
        // The first of equal ones.
        all.reduce(|most, plan| if total(plan) > total(most) { plan } else { most }).unwrap_or_default()
    }
}

impl<'o> RunPlan<'o> {
    /// Opens the model, reads the texts, checks the options.
    ///
    /// # Errors
    /// Options that contradict each other; a model or a text that cannot be read.
    pub fn new(spec: RunSpec, observer: &'o dyn Observer) -> Result<Self, RunError> {
        Self::with(spec, Need::Whole, observer)
    }

    /// The same for a plan only: texts may be missing, and a config.json is enough of the model, but where MaskPro learns on the model's
    /// loss.
    ///
    /// # Errors
    /// As [`RunPlan::new`].
    pub fn of_shape(spec: RunSpec, observer: &'o dyn Observer) -> Result<Self, RunError> {
        Self::with(spec, Need::Shape, observer)
    }

    fn with(spec: RunSpec, need: Need, observer: &'o dyn Observer) -> Result<Self, RunError> {
        let stages = spec.stages()?;
        permuted::channels(&spec.permute)?;
        let options = spec.walk_options(&stages)?;
        let policy = spec.policy();
        let needs_text =
            policy || !stages.behind.is_empty() || options.as_ref().is_some_and(OneShotOptions::needs_inputs);
        let source = Source::open(&spec, need, policy, needs_text, observer)?;
        let selection = spec.select.of(source.config())?;
        for name in &selection.skipped {
            observer.note(&format!("left dense: {name}"));
        }
        let choice = spec.choice(source.config());
        let (mut calib, mut eval) = (None, None);
        if let Source::Files(model) = &source {
            let texts = spec.windows.texts.options();
            calib = match &spec.calib {
                Some(text) => Some(choice.read(model, text, &texts, observer)?),
                None if needs_text => {
                    let message = format!("--method {} needs --calib TEXT", spec.method().name());
                    return Err(RunError::Options(message));
                }
                None => None,
            };
            if let (Some(asked), Some(windows)) = (spec.start.start_windows, &calib)
                && asked > windows.count()
            {
                let count = windows.count();
                observer
                    .warn(&format!("--start-windows {asked}: there are only {count} windows, all are taken"));
            }
            if let Some(text) = &spec.eval {
                let size = ("--eval-window", spec.eval_window);
                eval = Some(model.windows(text, &texts, size, spec.eval_windows, observer)?);
            }
        }
        Ok(Self {
            spec,
            observer,
            source,
            selection,
            choice,
            calib,
            eval,
            stages,
            options,
            needs_text,
            order: None,
        })
    }

    /// Other steps for the objectives of a learning method.
    ///
    /// # Errors
    /// As those of [`RunPlan::new`] about options.
    pub fn set_steps(&mut self, steps: Vec<u32>) -> Result<(), RunError> {
        self.spec.learn.steps = steps;
        self.stages = self.spec.stages()?;
        self.options = self.spec.walk_options(&self.stages)?;
        Ok(())
    }

    /// Options with another value than by default that nothing in this run reads, each with what does.
    pub fn unused(&self) -> Vec<(String, &'static str)> {
        let text = self.needs_text || self.spec.calib.is_some();
        let readers = Readers::of(&self.spec, &self.stages, self.options.as_ref(), text);
        readers.unused(&self.spec.given()).into_iter().map(|(key, what)| (key.into(), what)).collect()
    }

    /// What was asked for.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// What is pruned.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What config.json says.
    pub fn config(&self) -> &Architecture {
        self.source.config()
    }

    /// Where the model lies and the type that its weights are planned with, where it is planned by its config.json alone.
    pub fn shape(&self) -> Option<(&Path, Dtype)> {
        match &self.source {
            Source::Files(_) => None,
            Source::Shape { folder, dtype, .. } => Some((folder, *dtype)),
        }
    }

    /// Bytes of the masked model that the run writes; none with `no_model`, or where the model is planned by its config.json alone.
    ///
    /// # Errors
    /// That something of the model's folder cannot be read that the copy needs.
    pub fn written_bytes(&self) -> Result<Option<u64>, RunError> {
        match &self.source {
            Source::Files(model) if !self.spec.no_model => Ok(Some(hf::written_bytes(&model.checkpoint)?)),
            _ => Ok(None),
        }
    }

    /// The model, whose files a run needs.
    pub(crate) fn model(&self) -> Result<&Model, RunError> {
        match &self.source {
            Source::Files(model) => Ok(model),
            Source::Shape { folder, .. } => Err(RunError::Options(format!(
                "{} has no weights: it can be planned, not pruned",
                folder.display()
            ))),
        }
    }

    /// Puts the channels of the model into an order, with a scratch file in the folder `near`.
    pub(super) fn put_in_order(&mut self, order: Order, near: &Path) -> Result<(), RunError> {
        if let Source::Files(model) = &mut self.source {
            model.permute(&order.permutation, near)?;
        }
        self.order = Some(order);
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> Result<&Checkpoint, RunError> {
        Ok(&self.model()?.checkpoint)
    }

    /// Whether an order of the channels is looked for first.
    pub fn permutes(&self) -> bool {
        permuted::channels(&self.spec.permute).is_ok_and(|channels| !channels.is_empty())
    }

    /// Puts the model into the order of a start mask that is a file.
    pub(crate) fn in_order_of_start(&mut self) -> Result<(), RunError> {
        let start = StartSpec::file(self.spec.start_name()).map(Path::to_path_buf);
        if let (Some(start), Source::Files(model)) = (start, &mut self.source) {
            model.in_order_of(&start, &PermutationSpec::default(), &std::env::temp_dir(), self.observer)?;
        }
        Ok(())
    }

    /// The calibration windows of a run that needs some.
    pub(crate) fn calibration(&self) -> Result<&Windows, RunError> {
        self.calib.as_ref().ok_or_else(|| RunError::options("a calibration text is needed: --calib"))
    }

    /// The stages that learn behind the walk, in their order.
    pub fn stages(&self) -> &[Stage] {
        &self.stages.behind
    }

    pub(super) fn provenance(&self) -> Provenance {
        Provenance::new(self.spec.method().name(), self.spec.windows.seed)
    }

    /// Number and length of the calibration windows; none where no text is looked at.
    fn size(&self) -> Option<(usize, usize)> {
        match (&self.calib, &self.source) {
            (Some(windows), _) => Some((windows.count(), windows.window())),
            (None, Source::Shape { .. }) if self.needs_text || self.spec.calib.is_some() => {
                Some((self.choice.windows, self.choice.window))
            }
            (None, _) => None,
        }
    }

    /// How the walk carries its calibration windows: with little device memory where other learning takes its own, and only the first ones
    /// where a start mask is made of them. A mask that does not depend on them needs none.
    fn carried(&self, kernels: &Kernels<'_>, options: &OneShotOptions) -> Option<Carried> {
        let (gpu, config, (count, window)) = (kernels.gpu(), self.config(), self.size()?);
        if self.spec.method().one_shot().is_some() {
            return Some(self.spec.walk.carried(gpu, config, count, window, None));
        }
        let spare = (!self.spec.learn.only_layer()).then(|| self.spec.learn.policy_batch());
        let count = self.spec.start.windows(count);
        options.needs_inputs().then(|| self.spec.walk.carried(gpu, config, count, window, spare))
    }

    /// What plans the stages.
    pub(super) fn stage_plans<'s, 'g>(&'s self, kernels: &'s Kernels<'g>) -> StagePlans<'s, 'g> {
        let (windows, window) = self.size().unwrap_or((0, 0));
        StagePlans {
            kernels,
            config: self.config(),
            stored: self.source.stored(),
            selection: &self.selection,
            spec: &self.spec,
            windows,
            window,
        }
    }

    /// What the run takes on a device.
    ///
    /// # Errors
    /// What the device or the model's files report.
    pub fn resources(&self, kernels: &Kernels<'_>) -> Result<Resources, RunError> {
        let carried = self.options.as_ref().and_then(|options| self.carried(kernels, options));
        let stored = self.source.stored();
        let dtype = |name: &str| stored.of(name);
        let walk = |options| plan::walk(kernels, self.config(), &dtype, &self.selection, options, carried);
        Ok(Resources {
            walk: self.options.as_ref().map(walk).transpose()?,
            carried,
            stages: match self.spec.policy() {
                true => vec![self.policy_plan(kernels)?],
                false => self.stage_plans(kernels).all(&self.stages.behind)?,
            },
            measuring: self.measuring_plan(kernels)?,
        })
    }

    /// Refuses what takes more memory than may be used, with what to change.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, resources: &Resources) -> Result<(), RunError> {
        let walk = &self.spec.walk;
        walk.check_all(resources.walk.as_ref(), resources.carried, &resources.stages)?;
        resources.measuring.as_ref().map_or(Ok(()), |plan| walk.check_measuring(plan))
    }

    /// The plan of MaskPro on the model's loss.
    fn policy_plan(&self, kernels: &Kernels<'_>) -> Result<StagePlan, RunError> {
        let (config, checkpoint) = (self.config(), self.checkpoint()?);
        let (windows, window) = self.size().unwrap_or((0, 0));
        let batch = self.spec.learn.policy_batch();
        let sizes = maskpro::sizes(config, window, batch, kernels.limits());
        let scratch = kernels.scratch_bytes(DecoderWeights::largest_projection(checkpoint, config)?);
        let gpu = maskpro::plan(checkpoint, config, &self.selection, &sizes, scratch)?;
        let host = maskpro::host_plan(&self.selection, windows * window);
        Ok(StagePlan { name: "maskpro on the model's loss".into(), gpu, host, flops: None })
    }

    /// The plan of measuring on the evaluation text, where there is one that was read.
    fn measuring_plan(&self, kernels: &Kernels<'_>) -> Result<Option<MemoryPlan>, RunError> {
        let (Some((windows, _)), Source::Files(model)) = (&self.eval, &self.source) else { return Ok(None) };
        let (config, tensors) = (&model.config, &model.checkpoint);
        let embedding = Embedding::new(tensors, config)?;
        let model = Streamed { kernels, config, tensors, embedding: &embedding };
        let size = (windows.count(), windows.window());
        Ok(Some(model.plan(&model, &self.selection.projections(), size)?))
    }
}

impl Source {
    fn open(
        spec: &RunSpec,
        need: Need,
        policy: bool,
        needs_text: bool,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let revision = spec.device.revision.as_deref();
        if matches!(need, Need::Shape) {
            // Weights are not downloaded for a plan, but where it cannot be made without.
            let need = if policy { Need::Whole } else { Need::Shape };
            let folder = model_folder(&spec.model, revision, need, observer)?;
            let no_text = needs_text && !policy && spec.calib.is_none();
            if no_text || !Model::has_weights(&folder) {
                if policy {
                    return Err(RunError::options(
                        "--method maskpro on the model's loss cannot be planned without weights: add the weight files, or take \
                         --objective block or another --method",
                    ));
                }
                let config = Architecture::read(&folder)?;
                let dtype = config.dtype.unwrap_or(Dtype::F16);
                return Ok(Self::Shape { config, dtype, folder });
            }
        }
        Ok(Self::Files(Model::open_checked(&spec.model, revision, observer)?))
    }

    fn config(&self) -> &Architecture {
        match self {
            Self::Files(model) => &model.config,
            Self::Shape { config, .. } => config,
        }
    }

    fn stored(&self) -> Stored<'_> {
        match self {
            Self::Files(model) => Stored::Files(&model.checkpoint),
            Self::Shape { dtype, .. } => Stored::All(*dtype),
        }
    }
}
