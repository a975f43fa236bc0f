//! Runs llama.cpp on the CPU.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use llama_cpp_sys_2 as sys;

/// A model with a context.
pub(crate) struct Llama {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    vocab_size: i32,
}

/// A log callback that prints nothing.
unsafe extern "C" fn quiet(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}

impl Llama {
    /// # Errors
    /// If llama.cpp cannot load the file.
    pub(crate) fn load(path: &Path, threads: usize, n_ctx: usize, vocab_size: usize) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: calls of C functions with valid arguments. `Self` frees the handles when it is dropped, the model
        // last.
        unsafe {
            if std::env::var_os("LLAMA_LOG").is_none() {
                sys::llama_log_set(Some(quiet), std::ptr::null_mut());
            }
            sys::llama_backend_init();
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            let model = sys::llama_model_load_from_file(name.as_ptr(), params);
            ensure!(!model.is_null(), "llama.cpp cannot load {} (LLAMA_LOG=1 says why)", path.display());
            let mut params = sys::llama_context_default_params();
            params.n_ctx = n_ctx as u32;
            params.n_threads = threads as i32;
            params.n_threads_batch = threads as i32;
            let context = sys::llama_init_from_model(model, params);
            ensure!(!context.is_null(), "llama.cpp cannot create a context of {n_ctx} tokens");
            Ok(Self { model, context, vocab_size: vocab_size as i32 })
        }
    }

    /// The version of the library and the processor features that it was built for.
    pub(crate) fn version() -> String {
        // SAFETY: the strings live as long as the library.
        let [version, commit, info] = unsafe {
            [sys::ggml_version(), sys::ggml_commit(), sys::llama_print_system_info()]
                .map(|s| std::ffi::CStr::from_ptr(s).to_string_lossy().into_owned())
        };
        format!("ggml {version} ({commit}); {}", info.trim())
    }

    /// Tokens `from..from + n` of a fixed random text.
    fn tokens(&self, from: usize, n: usize) -> Vec<i32> {
        (from..from + n)
            .map(|i| (i as u32).wrapping_mul(2_654_435_761) as i32 & i32::MAX)
            .map(|t| t % self.vocab_size)
            .collect()
    }

    fn decode(&mut self, tokens: &mut [i32]) -> Result<()> {
        // SAFETY: the context is valid, and the tokens live until the call returns.
        let code = unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            let code = sys::llama_decode(self.context, batch);
            sys::llama_synchronize(self.context);
            code
        };
        ensure!(code == 0, "llama_decode returned {code} for {} tokens", tokens.len());
        Ok(())
    }

    /// Removes all tokens from the cache except the first `n`.
    fn truncate(&mut self, n: usize) -> Result<()> {
        // SAFETY: the context is valid.
        let ok = unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.context), 0, n as i32, -1) };
        ensure!(ok, "llama.cpp cannot remove tokens from its cache");
        Ok(())
    }

    /// The seconds that a prompt of `n` tokens takes.
    pub(crate) fn prompt(&mut self, n: usize) -> Result<f64> {
        self.truncate(0)?;
        let mut tokens = self.tokens(0, n);
        let start = Instant::now();
        self.prefill(&mut tokens)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Computes a prompt in batches of the size that the context allows.
    fn prefill(&mut self, tokens: &mut [i32]) -> Result<()> {
        // SAFETY: the context is valid.
        let n_batch = unsafe { sys::llama_n_batch(self.context) } as usize;
        for batch in tokens.chunks_mut(n_batch) {
            self.decode(batch)?;
        }
        Ok(())
    }

    /// The seconds of each of `n` tokens, decoded after `depth` others.
    pub(crate) fn generate(&mut self, depth: usize, n: usize) -> Result<Vec<f64>> {
        self.truncate(0)?;
        let mut before = self.tokens(0, depth);
        self.prefill(&mut before).context("filling the cache")?;
        let mut seconds = Vec::with_capacity(n);
        for i in 0..n {
            let mut token = self.tokens(depth + i, 1);
            let start = Instant::now();
            self.decode(&mut token)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        // SAFETY: `load` created the handles, and they are freed only here.
        unsafe {
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}
