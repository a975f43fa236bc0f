//! Measures the decoding speed of a synthetic model on the GPU. Chosen tokens stay on the device. Run it as
//! `cuda_decode [SPEC] [N_TOKENS] [DEPTH]`, for example `cuda_decode qwen3-30b-a3b,layers=24 128 1024`.
//!
//! Prints tokens per second and the time per token: for steps that wait for each token, and for steps that do not.

#[cfg(target_os = "linux")]
mod on_linux {
    use std::time::Instant;

    use zmlx_kernels::cuda::{CudaBackend, CudaIndices, CudaTensor};
    use zmlx_kernels::{Backend, Fusion, SampleSettings};
    use zmlx_models::{Checkpoint, Model, PoolOptions};

    pub(super) fn main() -> Result<(), Box<dyn std::error::Error>> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let argument =
            |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_owned());
        let (spec, n, depth) =
            (argument(0, "qwen3-30b-a3b"), argument(1, "128").parse()?, argument(2, "0").parse()?);
        let backend = CudaBackend::new(0)?;
        println!("{}, driver for CUDA {}, {spec}", backend.device_name(), backend.driver_version());
        let started = Instant::now();
        let model = Model::load(backend, &Checkpoint::synthetic(&spec, 1)?, &mut |_, _| {})?;
        println!("loaded in {:.1} s", started.elapsed().as_secs_f64());
        let mut reference: Option<Vec<u32>> = None;
        for (name, fusion) in [("fused", Fusion::FUSED), ("stock", Fusion::STOCK)] {
            let tokens = measure(&model, name, &fusion, n, depth)?;
            let first = reference.get_or_insert_with(|| tokens.clone());
            let same = first.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
            println!("{name}: the first {same} of {} tokens are those of fused", tokens.len());
        }
        Ok(())
    }

    fn measure(
        model: &Model<CudaBackend>,
        name: &str,
        fusion: &Fusion,
        n: usize,
        depth: usize,
    ) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
        let b = model.backend();
        let mut pool = model.pool(PoolOptions::default())?;
        let slot = pool.allocate()?;
        let prompt: Vec<u32> = (0..depth.max(4) as u32).map(|i| i * 7 % 1000).collect();
        let started = Instant::now();
        let logits = model.prefill(&mut pool, slot, &prompt, fusion, &mut |_, _| {})?;
        b.wait(&logits)?;
        println!("{name}: {} prompt tokens in {:.3} s", prompt.len(), started.elapsed().as_secs_f64());
        let mut id = choose(b, &logits)?;
        let (mut tokens, mut values) = (Vec::new(), Vec::new());
        let mut times = Vec::new();
        for _ in 0..n {
            let started = Instant::now();
            let logits = model.forward_id(&mut pool, slot, &id, fusion)?;
            id = choose(b, &logits)?;
            b.read_indices(&id, &mut values)?;
            tokens.push(values[0]);
            times.push(started.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!(
            "{name}: waiting for each token: median {:.3} ms, {:.0} tokens/s",
            1e3 * median,
            median.recip()
        );
        for round in 0..3 {
            let started = Instant::now();
            for _ in 0..n {
                let logits = model.forward_id(&mut pool, slot, &id, fusion)?;
                id = choose(b, &logits)?;
            }
            b.read_indices(&id, &mut values)?;
            let per_token = started.elapsed().as_secs_f64() / n as f64;
            println!(
                "{name}: round {round}, not waiting: {:.3} ms, {:.0} tokens/s",
                1e3 * per_token,
                per_token.recip()
            );
        }
        Ok(tokens)
    }

    /// The most probable token, which stays on the device.
    fn choose(b: &CudaBackend, logits: &CudaTensor) -> Result<CudaIndices, Box<dyn std::error::Error>> {
        let settings = SampleSettings {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition: None,
            seed: 0,
        };
        Ok(b.sample(logits, 0, &settings)?.ok_or("the device does not choose")?)
    }
}

#[cfg(target_os = "linux")]
use on_linux::main;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the CUDA backend is built on Linux only");
}
