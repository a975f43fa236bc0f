//! Decoding speed of a synthetic model on the GPU: `cuda_decode [SPEC] [N_STEPS] [DEPTH] [BATCH]`, as in
//! `cuda_decode qwen3-30b-a3b,layers=24 128 1024 1`.
//!
//! Prints what a step takes that waits for its logits, that reads them, and whose tokens the device chooses (the most probable
//! ones, or by chance) and the host reads; and of steps that wait for nothing, the tokens never leaving the device.

#[cfg(target_os = "linux")]
mod on_linux {
    use std::time::Instant;

    use zmlx_kernels::cuda::{CudaBackend, CudaIndices, CudaTensor};
    use zmlx_kernels::{Backend, Fusion, Logits, SampleSettings};
    use zmlx_models::{CachePool, Checkpoint, ChosenInput, Input, Model, PoolOptions, Slot};

    type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

    pub(super) fn main() -> Outcome<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let argument =
            |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_owned());
        let (spec, n) = (argument(0, "qwen3-30b-a3b"), argument(1, "128").parse()?);
        let (depth, batch) = (argument(2, "0").parse()?, argument(3, "1").parse()?);
        let backend = CudaBackend::new(0)?;
        println!("{}, driver for CUDA {}, {spec}", backend.device_name(), backend.driver_version());
        let started = Instant::now();
        let model = Model::load(backend, &Checkpoint::synthetic(&spec, 1)?, &mut |_, _| {})?;
        println!("loaded in {:.1} s", started.elapsed().as_secs_f64());
        Run::new(&model, depth, batch)?.measure(n)
    }

    /// Sequences of a depth.
    struct Run<'m> {
        model: &'m Model<CudaBackend>,
        pool: CachePool<CudaBackend>,
        slots: Vec<Slot>,
    }

    impl<'m> Run<'m> {
        fn new(model: &'m Model<CudaBackend>, depth: usize, batch: usize) -> Outcome<Self> {
            let mut pool = model.pool(PoolOptions::default())?;
            let mut slots = Vec::new();
            let prompt: Vec<u32> = (0..depth.max(4) as u32).map(|i| i * 7 % 1000).collect();
            let started = Instant::now();
            for _ in 0..batch {
                let slot = pool.allocate()?;
                let logits = model.prefill(&mut pool, slot, &prompt, &Fusion::FUSED, &mut |_, _| {})?;
                model.backend().wait(&logits)?;
                slots.push(slot);
            }
            let seconds = started.elapsed().as_secs_f64();
            println!("{batch} × {} prompt tokens in {seconds:.3} s", prompt.len());
            Ok(Self { model, pool, slots })
        }

        /// A step of one token for each sequence.
        fn step(&mut self, seed: usize) -> Outcome<CudaTensor> {
            let tokens: Vec<[u32; 1]> =
                (0..self.slots.len()).map(|i| [((seed * 131 + i * 977) % 5000) as u32]).collect();
            let inputs: Vec<Input<'_>> = self
                .slots
                .iter()
                .zip(&tokens)
                .map(|(slot, tokens)| Input { slot: *slot, tokens, logits: Logits::Last })
                .collect();
            Ok(self.model.forward(&mut self.pool, &inputs, &Fusion::FUSED)?)
        }

        fn measure(&mut self, n: usize) -> Outcome<()> {
            let b = self.model.backend();
            let mut values = Vec::new();
            self.time("waiting for logits", n, |run, i| Ok(b.wait(&run.step(i)?)?))?;
            self.time("reading logits", n, |run, i| Ok(b.read(&run.step(i)?, &mut values)?))?;
            for (name, temperature) in [("the most probable tokens", 0.0), ("tokens by chance", 0.8)] {
                self.time(name, n, |run, i| {
                    let logits = run.step(i)?;
                    for id in choose(b, &logits, run.slots.len(), temperature)? {
                        b.read_indices(&id, &mut Vec::new())?;
                    }
                    Ok(())
                })?;
            }
            for temperature in [0.0, 0.8] {
                let mut ids = vec![b.indices(&[1], &[1])?; self.slots.len()];
                let started = Instant::now();
                for _ in 0..n {
                    let inputs = self.slots.iter().zip(&ids).enumerate();
                    let inputs = inputs.map(|(row, (slot, id))| ChosenInput { slot: *slot, id, row });
                    let inputs: Vec<_> = inputs.collect();
                    let logits = self.model.forward_chosen(&mut self.pool, &inputs, &Fusion::FUSED)?;
                    ids = choose(b, &logits, self.slots.len(), temperature)?;
                }
                b.read_indices(&ids[0], &mut Vec::new())?;
                let ms = 1e3 * started.elapsed().as_secs_f64() / n as f64;
                let speed = 1e3 * self.slots.len() as f64 / ms;
                println!("not waiting, temperature {temperature}: {ms:.3} ms, {speed:.0} tokens/s");
            }
            Ok(())
        }

        /// The median of what `n` steps take.
        fn time(
            &mut self,
            name: &str,
            n: usize,
            mut step: impl FnMut(&mut Self, usize) -> Outcome<()>,
        ) -> Outcome<()> {
            let mut times = Vec::with_capacity(n);
            for i in 0..n {
                let started = Instant::now();
                step(self, i)?;
                times.push(started.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            let speed = self.slots.len() as f64 / median;
            println!("{name}: median {:.3} ms, {speed:.0} tokens/s", 1e3 * median);
            Ok(())
        }
    }

    /// The next token of each of the first `n` rows.
    fn choose(b: &CudaBackend, logits: &CudaTensor, n: usize, temperature: f32) -> Outcome<Vec<CudaIndices>> {
        let filtered = temperature > 0.0;
        let settings = SampleSettings {
            temperature,
            top_k: filtered.then_some(40),
            top_p: filtered.then_some(0.95),
            min_p: None,
            repetition: None,
            seed: 0x9e37_79b9_7f4a_7c15,
        };
        let rows: Vec<_> = (0..n).map(|row| (row, settings)).collect();
        let chosen = b.sample(logits, &rows)?.into_iter();
        Ok(chosen.collect::<Option<_>>().ok_or("the device does not choose")?)
    }
}

#[cfg(target_os = "linux")]
use on_linux::main;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the CUDA backend is built on Linux only");
}
