//! The activations of all windows, between the steps of a walk over the blocks: on the device where they fit, else in host
//! memory, batch by batch through two slots on the device, so that copies and computation overlap.

use super::{Embedding, NnError, Sizes};
use crate::gpu::{Commands, Gpu, GpuError, Reading};
use crate::kernel::{Activation, Layout, Rows, cut, f32_bytes};

/// Where activations are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On the device.
    Gpu,
    /// In host memory.
    Host,
}

/// What is kept of every window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// The residual stream, and the input of o or of down.
    Inputs,
    /// The residual stream.
    Residual,
}

/// What a step does with the tensors of a batch. Those that are not loaded hold anything, those that are not saved are lost.
#[derive(Clone, Copy, Default)]
pub struct Access {
    /// The residual stream is read.
    pub load_x: bool,
    /// The residual stream is changed.
    pub save_x: bool,
    /// The kept input is read.
    pub load_kept: bool,
    /// The kept input is made.
    pub save_kept: bool,
}

/// Buffers of one batch: the residual stream, and the input of o or of down between two steps.
struct Slot {
    x: Activation,
    kept: Vec<Activation>,
}

/// A batch while a step works on it.
pub struct BatchView<'a> {
    /// Its number.
    pub index: usize,
    /// Its windows.
    pub layout: Layout,
    /// The residual stream `[hidden, t]`.
    pub x: Rows<'a>,
    kept: &'a [Activation],
}

impl<'a> BatchView<'a> {
    /// The kept tensor as `[rows, t]`: the input of o.
    ///
    /// # Errors
    /// When it has fewer rows.
    pub fn kept(&self, rows: usize) -> Result<Rows<'a>, NnError> {
        let piece = self.kept.first().ok_or_else(|| GpuError::Shape {
            kernel: "activations",
            message: "a batch without a kept tensor".into(),
        })?;
        Ok(piece.rows(0, rows, self.layout.t4())?)
    }

    /// What the attention adds, where both parts of a block read its input.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn branch(&self, sizes: &Sizes) -> Result<Option<Rows<'a>>, NnError> {
        match self.kept.last().filter(|_| sizes.parallel()) {
            Some(last) => Ok(Some(last.rows(0, sizes.hidden(), self.layout.t4())?)),
            None => Ok(None),
        }
    }

    /// The kept tensor in pieces of the feed-forward layer, with the first feature of each: the input of down.
    ///
    /// # Errors
    /// When a piece has fewer rows.
    pub fn pieces(&self, sizes: &Sizes) -> Result<Vec<(usize, Rows<'a>)>, NnError> {
        let t4 = self.layout.t4();
        let piece = |((first, rows), a): ((usize, usize), &'a Activation)| Ok((first, a.rows(0, rows, t4)?));
        sizes.pieces().zip(self.kept).map(piece).collect()
    }
}

/// The activations of all windows.
pub struct Activations<'g> {
    gpu: &'g Gpu,
    sizes: Sizes,
    layouts: Vec<Layout>,
    /// One for each batch, or two.
    slots: Vec<Slot>,
    /// In host memory: residual stream and kept tensor of every batch.
    host: Vec<(Vec<f32>, Vec<f32>)>,
    place: Place,
}

/// Rows of a batch's kept tensors.
fn kept_rows(sizes: &Sizes, keep: Keep) -> usize {
    match keep {
        Keep::Inputs => sizes.kept_rows(),
        Keep::Residual => 0,
    }
}

/// Windows of each batch.
fn layouts(sizes: &Sizes, windows: usize) -> impl Iterator<Item = Layout> {
    let (most, length) = (sizes.layout.windows, sizes.layout.length);
    cut::pieces(0..windows, most).map(move |r| Layout { windows: r.len(), length })
}

impl<'g> Activations<'g> {
    /// Embeds `tokens`, windows of `sizes.layout.length`, in batches of `sizes.layout.windows`.
    ///
    /// # Errors
    /// A token outside the vocabulary, windows longer than the model's learned positions, or no room.
    pub fn embed(
        gpu: &'g Gpu,
        embedding: &Embedding<'_>,
        tokens: &[u32],
        sizes: Sizes,
        place: Place,
        keep: Keep,
    ) -> Result<Self, NnError> {
        let length = sizes.layout.length;
        let layouts: Vec<Layout> = layouts(&sizes, tokens.len() / length).collect();
        let count = slots(place, layouts.len());
        let slots = layouts.iter().take(count).map(|l| Slot::new(gpu, &sizes, keep, l.t4()));
        let mut out = Self {
            gpu,
            slots: slots.collect::<Result<_, NnError>>()?,
            layouts,
            host: Vec::new(),
            place,
            sizes,
        };
        let mut first = 0;
        for (i, layout) in out.layouts.iter().enumerate() {
            let ids = &tokens[first..first + layout.windows * length];
            first += ids.len();
            let x = embedding.gather(ids, *layout)?;
            match place {
                Place::Gpu => gpu.upload(out.slots[i].x.buffer(), 0, bytemuck::cast_slice(&x))?,
                // The kept tensor takes host memory when it is first saved.
                Place::Host => out.host.push((x, Vec::new())),
            }
        }
        Ok(out)
    }

    /// The sizes of a batch.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Number of batches.
    pub fn batches(&self) -> usize {
        self.layouts.len()
    }

    /// The residual streams `[hidden, t]` of all batches, of activations in host memory; frees the rest.
    ///
    /// # Errors
    /// For activations on the device.
    pub fn into_residuals(self) -> Result<Vec<Vec<f32>>, NnError> {
        if self.place == Place::Gpu {
            let message = "residual streams of activations on the device".into();
            return Err(GpuError::Shape { kernel: "activations", message }.into());
        }
        Ok(self.host.into_iter().map(|(x, _)| x).collect())
    }

    /// Calls `step` with every batch in order, as `access` says. Copies of one batch run beside the work on another.
    ///
    /// # Errors
    /// Those of `step`, or what the device reports.
    pub fn each<E: From<NnError>>(
        &mut self,
        c: &mut Commands<'g>,
        access: Access,
        mut step: impl FnMut(&mut Commands<'g>, &BatchView<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.place == Place::Host {
            self.load(0, access)?;
        }
        let mut saving: Option<(usize, Vec<Reading>)> = None;
        for i in 0..self.layouts.len() {
            let slot = &self.slots[i % self.slots.len()];
            let layout = self.layouts[i];
            let x = slot.x.rows(0, self.sizes.hidden(), layout.t4()).map_err(NnError::from)?;
            step(c, &BatchView { index: i, layout, x, kept: &slot.kept })?;
            if self.place == Place::Gpu {
                continue;
            }
            let started = self.start_save(c, i, access)?;
            // Ordered behind what was submitted: the slot's last user has copied out what it saves.
            self.load(i + 1, access)?;
            if let Some((batch, readings)) = saving.replace((i, started)) {
                self.finish_save(c, batch, readings, access)?;
            }
        }
        if let Some((batch, readings)) = saving {
            self.finish_save(c, batch, readings, access)?;
        }
        Ok(())
    }

    /// Batch `i` alone, its residual stream loaded; valid until another batch is asked for.
    ///
    /// # Errors
    /// What the device reports.
    pub fn batch(&self, c: &mut Commands<'g>, i: usize) -> Result<BatchView<'_>, NnError> {
        if self.place == Place::Host {
            // Uploads go before what is recorded and not submitted: that may still read the slot.
            c.submit()?;
            self.load(i, Access { load_x: true, ..Default::default() })?;
        }
        let slot = &self.slots[i % self.slots.len()];
        let layout = self.layouts[i];
        let x = slot.x.rows(0, self.sizes.hidden(), layout.t4())?;
        Ok(BatchView { index: i, layout, x, kept: &slot.kept })
    }

    fn load(&self, i: usize, access: Access) -> Result<(), NnError> {
        let (Some((x, kept)), slot) = (self.host.get(i), &self.slots[i % self.slots.len()]) else {
            return Ok(());
        };
        if access.load_x {
            self.gpu.upload_queued(slot.x.buffer(), bytemuck::cast_slice(x))?;
        }
        if access.load_kept && !kept.is_empty() {
            let row = 4 * self.layouts[i].t4();
            let mut at = 0;
            for (piece, (_, rows)) in slot.kept.iter().zip(self.sizes.kept_pieces()) {
                self.gpu.upload_queued(piece.buffer(), bytemuck::cast_slice(&kept[at..at + rows * row]))?;
                at += rows * row;
            }
        }
        Ok(())
    }

    fn start_save(&self, c: &mut Commands<'g>, i: usize, access: Access) -> Result<Vec<Reading>, NnError> {
        let slot = &self.slots[i % self.slots.len()];
        let row = f32_bytes(1, 4 * self.layouts[i].t4());
        let mut out = Vec::new();
        if access.save_x {
            out.push(c.start_read(slot.x.buffer(), self.sizes.hidden() as u64 * row)?);
        }
        if access.save_kept {
            for (piece, (_, rows)) in slot.kept.iter().zip(self.sizes.kept_pieces()) {
                out.push(c.start_read(piece.buffer(), rows as u64 * row)?);
            }
        }
        c.submit()?;
        Ok(out)
    }

    fn finish_save(
        &mut self,
        c: &mut Commands<'g>,
        i: usize,
        readings: Vec<Reading>,
        access: Access,
    ) -> Result<(), NnError> {
        let (x, kept) = &mut self.host[i];
        let row = 4 * self.layouts[i].t4();
        let mut readings = readings.into_iter();
        if access.save_x
            && let Some(reading) = readings.next()
        {
            c.finish_read(reading, bytemuck::cast_slice_mut(x))?;
        }
        if access.save_kept && kept.is_empty() {
            *kept = vec![0.0; self.sizes.kept_rows() * row];
        }
        let mut at = 0;
        for (reading, (_, rows)) in readings.zip(self.sizes.kept_pieces()) {
            c.finish_read(reading, bytemuck::cast_slice_mut(&mut kept[at..at + rows * row]))?;
            at += rows * row;
        }
        Ok(())
    }

    /// Bytes on the device, and in host memory, of the activations of `windows` windows.
    pub fn bytes(sizes: &Sizes, windows: usize, place: Place, keep: Keep) -> (u64, u64) {
        let all = || layouts(sizes, windows).map(|l| Slot::bytes(sizes, keep, l.t4()));
        let batches = layouts(sizes, windows).count();
        let on_gpu = all().take(slots(place, batches)).sum();
        let on_host = match place {
            Place::Gpu => 0,
            Place::Host => all().sum(),
        };
        (on_gpu, on_host)
    }

    /// Bytes of the read-back buffers that [`Activations::each`] takes in host memory's favour.
    pub fn staging_bytes(sizes: &Sizes, windows: usize, place: Place, keep: Keep) -> u64 {
        match place {
            Place::Gpu => 0,
            // Those of one batch come in while those of the next are made.
            Place::Host => {
                let rows = sizes.hidden().max(kept_rows(sizes, keep));
                let batches = layouts(sizes, windows).take(2);
                batches.map(|l| f32_bytes(rows, 4 * l.t4())).sum()
            }
        }
    }
}

/// Slots on the device.
fn slots(place: Place, batches: usize) -> usize {
    match place {
        Place::Gpu => batches,
        Place::Host => batches.min(2),
    }
}

impl Slot {
    fn new(gpu: &Gpu, sizes: &Sizes, keep: Keep, t4: usize) -> Result<Self, NnError> {
        let pieces = sizes.kept_pieces().filter(|_| keep == Keep::Inputs);
        let kept = pieces.map(|(_, rows)| Activation::new(gpu, "activations:kept input", rows, t4));
        Ok(Self {
            x: Activation::new(gpu, "activations:residual", sizes.hidden(), t4)?,
            kept: kept.collect::<Result<_, _>>()?,
        })
    }

    fn bytes(sizes: &Sizes, keep: Keep, t4: usize) -> u64 {
        f32_bytes(sizes.hidden() + kept_rows(sizes, keep), 4 * t4)
    }
}
