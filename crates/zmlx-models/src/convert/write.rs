//! Writes the shards block by block, with several threads.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use zmlx_kernels::{HostWeight, will_need};

use super::encode::{self, Encoded};
use super::files::{self, error_at};
use super::plan::{Plan, Weight};
use super::state::{State, fingerprint};
use super::{ConvertOptions, ConvertProgress, source};
use crate::{Checkpoint, Error, Result};

/// Work on fewer values than this does not get a thread of its own.
const MIN_PER_THREAD: usize = 1 << 16;

/// Additional space for the note, the index and the file system's own data.
const SPARE_BYTES: u64 = 16 << 20;

/// A planned conversion.
pub(super) struct Job<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) plan: &'a Plan,
    pub(super) dir: &'a Path,
    pub(super) options: &'a ConvertOptions,
}

impl Job<'_> {
    /// Writes everything. Returns how many shards existed already.
    pub(super) fn run(&self, progress: ConvertProgress<'_>) -> Result<usize> {
        let Self { source, plan, dir, .. } = *self;
        let fingerprint = fingerprint(source, plan);
        // This check comes before the first change to the folder. Files that an earlier run left already take their
        // space.
        let room = |is_there: &dyn Fn(&Path) -> bool| {
            let missing = plan.shards.iter().filter(|shard| !is_there(&dir.join(&shard.name)));
            files::ensure_room(dir, missing.map(|s| s.n_bytes()).fold(SPARE_BYTES, u64::saturating_add))
        };
        let has_begun = State::has_begun(dir, &fingerprint)?;
        if !has_begun {
            room(&|_| false)?;
        }
        let mut state = State::begin(dir, &fingerprint)?;
        if has_begun {
            for shard in &plan.shards {
                // It was begun but not finished, so it is written again.
                let _ = std::fs::remove_file(files::part(&dir.join(&shard.name)));
            }
            room(&|path| path.is_file())?;
        }
        let mut meter = Meter::new(plan, progress);
        let mut is_finished = Vec::with_capacity(plan.shards.len());
        for shard in &plan.shards {
            is_finished.push(state.has_finished(shard)?);
            if is_finished.last() == Some(&true) {
                meter.add(shard.data_bytes)?;
            }
        }
        self.shards(&is_finished, &mut state, &mut meter)?;
        files::write(&dir.join("model.safetensors.index.json"), plan.index.as_bytes())?;
        files::copy(source.dir(), dir)?;
        // This file comes last: now the folder holds a model.
        files::write(&dir.join("config.json"), plan.config.as_bytes())?;
        files::sync_folder(dir)?;
        state.end()?;
        Ok(is_finished.iter().filter(|&&is| is).count())
    }

    fn shards(&self, is_finished: &[bool], state: &mut State, meter: &mut Meter<'_>) -> Result<()> {
        let mut open: Option<(usize, Output)> = None;
        for (module, weights) in &self.plan.modules {
            if weights.iter().all(|w| is_finished[w.shard_idx]) {
                continue;
            }
            let parts = source::one(self.source, module)?;
            for (weight, part) in weights.iter().zip(&parts) {
                if is_finished[weight.shard_idx] {
                    continue;
                }
                if open.as_ref().is_none_or(|(idx, _)| *idx != weight.shard_idx) {
                    self.close(open.take(), state)?;
                    let shard = &self.plan.shards[weight.shard_idx];
                    open = Some((weight.shard_idx, Output::create(self.dir, &shard.name, &shard.header)?));
                }
                if let Some((_, output)) = &mut open {
                    self.weight(weight, &part.weight, output, meter)?;
                }
            }
        }
        self.close(open, state)
    }

    fn close(&self, open: Option<(usize, Output)>, state: &mut State) -> Result<()> {
        let Some((idx, output)) = open else { return Ok(()) };
        output.file.sync_all().map_err(error_at(&output.path))?;
        drop(output.file);
        state.finish(&self.plan.shards[idx])
    }

    fn weight(
        &self,
        weight: &Weight,
        host: &HostWeight,
        output: &mut Output,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let n_threads = self.options.n_threads.unwrap_or_else(available).max(1);
        let mut blocks = encode::blocks(weight.n_mats, weight.mat_len);
        loop {
            let wave: Vec<_> = blocks.by_ref().take(n_threads).collect();
            if wave.is_empty() {
                return Ok(());
            }
            for ((mat, values), encoded) in wave.iter().zip(encode_all(weight, host, &wave)) {
                let before = mat * weight.mat_len + values.start;
                for (tensor, bytes) in weight.tensors.iter().zip(encoded?) {
                    let n_values = (weight.n_mats * weight.mat_len) as u128;
                    // This is exact, because a block consists of whole groups, which all have the same number of bytes.
                    let at = before as u128 * u128::from(tensor.n_bytes) / n_values;
                    output.write(tensor.offset + at as u64, &bytes)?;
                    meter.add(bytes.len() as u64)?;
                }
            }
        }
    }
}

/// Encodes each block.
fn encode_all(weight: &Weight, host: &HostWeight, wave: &[(usize, Range<usize>)]) -> Vec<Result<Encoded>> {
    let encode = |(mat, values): &(usize, Range<usize>)| {
        weight.encoding.encode(&weight.name, host.mat(*mat), values.clone())
    };
    let n_values: usize = wave.iter().map(|(_, values)| values.len()).sum();
    if n_values < 2 * MIN_PER_THREAD {
        return wave.iter().map(encode).collect();
    }
    for (mat, values) in wave {
        let data = &host.mat(*mat).data;
        let of_values = |n: usize| (n as u128 * data.len() as u128 / weight.mat_len.max(1) as u128) as usize;
        will_need(data.get(of_values(values.start)..of_values(values.end)).unwrap_or_default());
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = wave.iter().map(|block| scope.spawn(move || encode(block))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Encoded>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A shard that is being written.
struct Output {
    path: PathBuf,
    file: File,
    header_bytes: u64,
}

impl Output {
    fn create(dir: &Path, name: &str, header: &[u8]) -> Result<Self> {
        let path = files::part(&dir.join(name));
        let error = error_at(&path);
        let mut file = File::create(&path).map_err(&error)?;
        file.write_all(header).map_err(&error)?;
        Ok(Self { path, file, header_bytes: header.len() as u64 })
    }

    /// Writes bytes of the tensors.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(self.header_bytes + at));
        written.and_then(|_| self.file.write_all(bytes)).map_err(error_at(&self.path))
    }
}

/// Counts the progress.
struct Meter<'a> {
    done: u64,
    of: u64,
    progress: ConvertProgress<'a>,
}

impl<'a> Meter<'a> {
    fn new(plan: &Plan, progress: ConvertProgress<'a>) -> Self {
        Self { done: 0, of: plan.total_bytes, progress }
    }

    /// # Errors
    /// [`Error::Stopped`] if the callback stops the conversion.
    fn add(&mut self, n_bytes: u64) -> Result<()> {
        self.done += n_bytes;
        match (self.progress)(self.done, self.of) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}
