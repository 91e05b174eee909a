//! Masks, and re-fitted weights, of the projections that share one input, on the device.
//!
//! A projection is treated in panels of rows, so that its products with the Gram matrix fit a binding whatever its size. The rows
//! of a projection do not depend on each other.

use std::ops::Range;
use std::time::Instant;

use super::ProjectionReport;
use super::PruneError;
use super::learn::Stage;
use super::learn::layer::Layer;
use super::oneshot::{OneShot, OneShotOptions, Repair, StartMask};
use super::statistics::Statistics;
use crate::gpu::{Commands, Gpu};
use crate::kernel::{
    AbsSums, Descent, Kernels, Lstsq, LstsqOptions, LstsqScratch, MaskBuffer, Part, Rows, Score, SparseGpt,
    Square, Weight,
};
use crate::mask::BitMask;

/// Sweeps of descent between two looks at whether it has ended.
const SWEEPS_A_PASS: u32 = 4;
/// Rounds of descent: after the first, the products are made anew, so that rounding errors of many changes do not decide when it
/// has ended.
const ROUNDS: usize = 3;

/// What a projection got.
pub struct Solved {
    /// Its mask on the device.
    pub mask: MaskBuffer,
    /// The same on the host.
    pub bits: BitMask,
    /// Kept weights that changed, `[rows, cols]` with zeros where pruned.
    pub weights: Option<Vec<f32>>,
    /// How it came out.
    pub report: ProjectionReport,
}

/// Chooses masks for the projections of one input.
pub struct Solver<'a, 'g> {
    kernels: &'a Kernels<'g>,
    options: &'a OneShotOptions,
    statistics: Option<Statistics<'a>>,
    sums: Option<AbsSums>,
}

impl<'a, 'g> Solver<'a, 'g> {
    /// A solver for projections of at most `rows` rows and `cols` columns, whose input has the Gram matrix `h`. Without it only
    /// methods that need no inputs work.
    ///
    /// # Errors
    /// When the device has no room, or the matrix cannot be factored.
    pub fn new(
        kernels: &'a Kernels<'g>,
        c: &mut Commands<'g>,
        options: &'a OneShotOptions,
        h: Option<&'a Square>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, PruneError> {
        let gpu = kernels.gpu();
        let statistics = match h {
            Some(h) => Some(Statistics::new(kernels, c, options, h, rows)?),
            None => None,
        };
        let sums = match uses_ria(options) {
            true => Some(AbsSums::new(gpu, rows, cols)?),
            false => None,
        };
        Ok(Self { kernels, options, statistics, sums })
    }

    /// Bytes of statistics (without `h` itself) and of scratch that [`Solver::new`] takes.
    pub fn bytes(gpu: &Gpu, options: &OneShotOptions, rows: usize, n: usize) -> (u64, u64) {
        let (statistics, scratch) = Statistics::bytes(gpu, options, rows, n);
        (statistics, scratch + if uses_ria(options) { AbsSums::device_bytes(rows, n) } else { 0 })
    }

    /// Squared norms of the input's features `[n]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn squared_norms(&self, c: &mut Commands<'g>) -> Result<Option<Vec<f32>>, PruneError> {
        match &self.statistics {
            Some(s) => Ok(Some(c.read(&s.diagonal, 0, s.h.n())?)),
            None => Ok(None),
        }
    }

    /// Chooses the mask of projection `number` of the model, from `start` where a file is started from, and re-fits the weights if
    /// asked for.
    ///
    /// # Errors
    /// What the device reports.
    pub fn solve(
        &self,
        c: &mut Commands<'g>,
        name: &str,
        number: usize,
        weight: &Weight,
        start: Option<&BitMask>,
    ) -> Result<Solved, PruneError> {
        let started = Instant::now();
        let gpu = self.kernels.gpu();
        let label = format!("masks:{name}");
        let mask = match start {
            Some(start) => MaskBuffer::upload(gpu, &label, start)?,
            None => MaskBuffer::new(gpu, &label, weight.rows(), weight.cols())?,
        };
        let mut work = Work {
            solver: self,
            weight,
            mask,
            start: None,
            energy: 0.0,
            errors: Vec::new(),
            start_errors: Vec::new(),
            weights: Vec::new(),
            report: ProjectionReport { name: name.into(), ..Default::default() },
        };
        work.choose(c, start.is_some())?;
        if let Some(statistics) = &self.statistics {
            let panels = || statistics.panels(weight);
            for rows in panels() {
                work.panel(c, statistics, rows)?;
            }
            if let Some(stage) = &self.options.learn {
                work.learn(c, statistics, stage, number as u32)?;
                for rows in panels() {
                    work.products(c, statistics, rows.clone())?;
                    if stage.polish {
                        work.descend(c, statistics, rows.clone())?;
                    }
                    work.measure(c, statistics, rows)?;
                }
            }
            if let Some(scratch) = &statistics.lstsq {
                for rows in panels() {
                    work.refit(c, statistics, scratch, rows)?;
                }
            }
        }
        let mut solved = work.finish(c)?;
        solved.report.seconds = started.elapsed().as_secs_f64();
        Ok(solved)
    }

    fn score<'s>(&'s self, method: OneShot) -> Option<Score<'s>> {
        let diagonal = self.statistics.as_ref().map(|s| &s.diagonal);
        match method {
            OneShot::Magnitude => Some(Score::Magnitude),
            OneShot::Wanda => Some(Score::Wanda(diagonal?)),
            OneShot::Ria => Some(Score::Ria(diagonal?, self.sums.as_ref()?)),
            OneShot::SparseGpt | OneShot::Descent | OneShot::Given => None,
        }
    }
}

fn uses_ria(options: &OneShotOptions) -> bool {
    options.method == OneShot::Ria || options.method == OneShot::Descent && options.start == StartMask::Ria
}

/// One projection under way.
struct Work<'s, 'a, 'g> {
    solver: &'s Solver<'a, 'g>,
    weight: &'s Weight,
    mask: MaskBuffer,
    /// What descent, or then learning, started from.
    start: Option<BitMask>,
    /// Squared output of all rows.
    energy: f64,
    /// Error of every row under the mask, and under the start mask.
    errors: Vec<f32>,
    start_errors: Vec<f32>,
    weights: Vec<f32>,
    report: ProjectionReport,
}

impl<'g> Work<'_, '_, 'g> {
    fn options(&self) -> &OneShotOptions {
        self.solver.options
    }

    /// The mask by a score, of the method itself or of what descent starts from.
    fn choose(&mut self, c: &mut Commands<'g>, given: bool) -> Result<(), PruneError> {
        let solver = self.solver;
        let by = match (self.options().method, self.options().start) {
            (OneShot::Descent, StartMask::Magnitude) => OneShot::Magnitude,
            (OneShot::Descent, StartMask::Wanda) => OneShot::Wanda,
            (OneShot::Descent, StartMask::Ria) => OneShot::Ria,
            (method, _) => method,
        };
        if let Some(sums) = &solver.sums {
            solver.kernels.abs_sums(c, self.weight, sums)?;
        }
        if !given && let Some(score) = solver.score(by) {
            solver.kernels.score_mask(c, self.weight, score, self.options().pattern, &self.mask)?;
        }
        if self.options().method == OneShot::Descent {
            self.start = Some(self.read_mask(c)?);
        }
        Ok(())
    }

    fn read_mask(&self, c: &mut Commands<'g>) -> Result<BitMask, PruneError> {
        let (rows, cols) = self.mask.shape();
        let words = c.read(self.mask.buffer(), 0, rows * self.mask.words_per_row())?;
        Ok(BitMask::from_words(rows, cols, words)?)
    }

    fn panel(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        rows: Range<usize>,
    ) -> Result<(), PruneError> {
        let k = self.solver.kernels;
        let k4 = self.weight.k4();
        let products = s.products.rows(0, rows.len(), k4)?;
        let change = s.change.rows(0, rows.len(), k4)?;
        k.spread(c, self.weight, Part::All, rows.clone(), change)?;
        k.weight_times_square(c, self.weight, None, rows.clone(), s.h, products)?;
        self.energy += self.row_errors(c, s, change, products)?.iter().map(|&e| f64::from(e)).sum::<f64>();
        match self.options().method {
            OneShot::SparseGpt => self.sparsegpt(c, s, rows.clone(), change)?,
            OneShot::Descent => {
                self.products(c, s, rows.clone())?;
                let errors = self.row_errors(c, s, change, products)?;
                self.start_errors.extend(errors);
                self.descend(c, s, rows.clone())?;
            }
            _ => {}
        }
        if self.options().method != OneShot::Descent {
            self.products(c, s, rows.clone())?;
        }
        self.measure(c, s, rows)
    }

    /// Errors of a panel whose products are there, and the start mask where they are worse.
    fn measure(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        rows: Range<usize>,
    ) -> Result<(), PruneError> {
        let k4 = self.weight.k4();
        let (products, change) = (s.products.rows(0, rows.len(), k4)?, s.change.rows(0, rows.len(), k4)?);
        let part = Part::Pruned(&self.mask);
        self.solver.kernels.spread(c, self.weight, part, rows.clone(), change)?;
        let errors = self.row_errors(c, s, change, products)?;
        self.errors.extend(errors);
        self.take_back_worse(c, rows)
    }

    /// Goes on from the mask so far, which becomes the start mask, to the one that is learned.
    fn learn(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        stage: &Stage,
        number: u32,
    ) -> Result<(), PruneError> {
        let start = self.read_mask(c)?;
        let layer = Layer {
            kernels: self.solver.kernels,
            stage,
            name: &self.report.name,
            number,
            weight: self.weight,
            h: s.h,
            energy: self.energy,
            errors: &self.errors,
            panels: s.panels(self.weight).collect(),
            change: &s.change,
            products: &s.products,
        };
        let learned = layer.learn(c, &start)?;
        c.write(self.mask.buffer(), 0, learned.words())?;
        self.start = Some(start);
        self.start_errors = std::mem::take(&mut self.errors);
        Ok(())
    }

    /// Neither rounding nor learning may leave a row worse than it was: such rows get their start mask again.
    fn take_back_worse(&mut self, c: &mut Commands<'g>, rows: Range<usize>) -> Result<(), PruneError> {
        let Some(start) = &self.start else {
            return Ok(());
        };
        let is_worse = |&r: &usize| self.errors[r] > self.start_errors[r] || self.errors[r].is_nan();
        let worse: Vec<usize> = rows.filter(is_worse).collect();
        if worse.is_empty() {
            return Ok(());
        }
        let mut bits = self.read_mask(c)?;
        for &r in &worse {
            bits.copy_row(start, r);
            self.errors[r] = self.start_errors[r];
        }
        let gpu = self.solver.kernels.gpu();
        Ok(gpu.upload(self.mask.buffer(), 0, bytemuck::cast_slice(bits.words()))?)
    }

    /// Least squares of the kept weights of a panel.
    fn refit(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        scratch: &LstsqScratch,
        rows: Range<usize>,
    ) -> Result<(), PruneError> {
        let out = s.change.rows(0, rows.len(), self.weight.k4())?;
        let options = LstsqOptions { damping: self.options().repair_damp, ..Default::default() };
        let values = rows.len() * self.weight.cols();
        let job = Lstsq { weight: self.weight, mask: &self.mask, rows, h: s.h, options };
        let report = self.solver.kernels.lstsq(c, &job, scratch, out)?;
        let weights: Vec<f32> = c.read(s.change.buffer(), 0, values)?;
        self.weights.extend(weights);
        self.add_repaired(&report.after);
        let iterations = report.iterations as u32;
        self.report.iterations = Some(self.report.iterations.unwrap_or(0).max(iterations));
        Ok(())
    }

    /// Pruned weights of the panel, and their products with the Gram matrix.
    fn products(
        &self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        rows: Range<usize>,
    ) -> Result<(), PruneError> {
        let k = self.solver.kernels;
        let k4 = self.weight.k4();
        let products = s.products.rows(0, rows.len(), k4)?;
        let change = s.change.rows(0, rows.len(), k4)?;
        k.spread(c, self.weight, Part::Pruned(&self.mask), rows.clone(), change)?;
        Ok(k.weight_times_square(c, self.weight, Some((&self.mask, true)), rows, s.h, products)?)
    }

    /// Squared output errors of the rows of a panel: of a change and its product with the Gram matrix.
    fn row_errors(
        &self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        change: Rows<'_>,
        products: Rows<'_>,
    ) -> Result<Vec<f32>, PruneError> {
        self.solver.kernels.row_dot(c, change, products, &s.errors, 0)?;
        Ok(c.read(&s.errors, 0, change.count)?)
    }

    fn sparsegpt(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        rows: Range<usize>,
        panel: Rows<'_>,
    ) -> Result<(), PruneError> {
        let (Some((factor, used)), Some(scratch)) = (&s.factor, &s.sparsegpt) else {
            return Ok(());
        };
        let pattern = self.options().pattern;
        let job = SparseGpt {
            weights: panel,
            arrived: s.products.rows(0, rows.len(), self.weight.k4())?,
            factor,
            pattern,
            mask: &self.mask,
            first_row: rows.start,
        };
        self.solver.kernels.sparsegpt(c, &job, scratch)?;
        self.report.damp_raised = (*used > self.options().damp).then_some(*used);
        if self.options().repair == Repair::Update {
            let weights: Vec<f32> = c.read(s.change.buffer(), 0, rows.len() * self.weight.cols())?;
            self.weights.extend(weights);
            // The error that these weights make: change = W - panel.
            let k = self.solver.kernels;
            let products = s.products.rows(0, rows.len(), self.weight.k4())?;
            k.spread(c, self.weight, Part::Minus(1.0), rows.clone(), panel)?;
            k.times_square(c, panel, s.h, products)?;
            let errors = self.row_errors(c, s, panel, products)?;
            self.add_repaired(&errors);
        }
        Ok(())
    }

    fn add_repaired(&mut self, errors: &[f32]) {
        let sum: f64 = errors.iter().map(|&e| f64::from(e)).sum();
        self.report.repaired = Some(self.report.repaired.unwrap_or(0.0) + sum);
    }

    /// Descent on a panel until a pass over fresh products changes nothing, or the sweeps are used up.
    fn descend(
        &mut self,
        c: &mut Commands<'g>,
        s: &Statistics<'_>,
        rows: Range<usize>,
    ) -> Result<(), PruneError> {
        let Some(moves) = &s.moves else {
            return Ok(());
        };
        let (most, tolerance, pattern) =
            (self.options().max_sweeps, self.options().tolerance, self.options().pattern);
        let (mut sweeps, mut passes) = (0, 0);
        for round in 0..ROUNDS {
            if round > 0 {
                self.products(c, s, rows.clone())?;
            }
            let mut pass = 0;
            let mut moved = true;
            while moved && sweeps < most {
                let now = SWEEPS_A_PASS.min(most - sweeps);
                let descent = Descent {
                    weight: self.weight,
                    h: s.h,
                    mask: &self.mask,
                    pattern,
                    rows: rows.clone(),
                    products: &s.products,
                    moves,
                    pass,
                    sweeps: now,
                    tolerance,
                };
                sweeps += self.solver.kernels.descent(c, &descent)?;
                let at = Descent::counts_of(pass, rows.len());
                let counts: Vec<u32> = c.read(moves, at, rows.len())?;
                moved = counts.iter().any(|&n| n > 0);
                pass += 1;
            }
            passes += pass;
            if pass == 1 && !moved || sweeps >= most {
                break;
            }
        }
        self.report.passes = Some(self.report.passes.unwrap_or(0).max(passes));
        Ok(())
    }

    fn finish(mut self, c: &mut Commands<'g>) -> Result<Solved, PruneError> {
        let bits = self.read_mask(c)?;
        let pattern = self.options().pattern;
        if let Some(start) = &self.start {
            self.report.groups_changed = Some(bits.groups_changed(start, pattern));
        }
        bits.check(pattern).map_err(|e| e.within(&self.report.name))?;
        if self.solver.statistics.is_some() {
            let share = |errors: &[f32]| {
                let sum: f64 = errors.iter().map(|&e| f64::from(e).max(0.0)).sum();
                if self.energy > 0.0 { sum / self.energy } else { 0.0 }
            };
            self.report.start = self.start.as_ref().map(|_| share(&self.start_errors));
            self.report.error = Some(share(&self.errors));
            let energy = self.energy;
            self.report.repaired = self.report.repaired.map(|e| if energy > 0.0 { e / energy } else { 0.0 });
        }
        let weights = (!self.weights.is_empty()).then_some(self.weights);
        Ok(Solved { mask: self.mask, bits, weights, report: self.report })
    }
}
