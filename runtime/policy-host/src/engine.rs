//! The one wasmtime engine of a process, set up for many small guests that answer in microseconds.

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::{admission::AdmissionError, limits::PolicyLimits, ticker::Ticker};

/// Instances that can live at once: one for each router thread and model, their successors during a swap, and those
/// on trial. More is a matter of address space only.
const MAX_INSTANCES: u32 = 512;
/// A component from another language than Rust, C or AssemblyScript is made of several core modules.
const MAX_CORE_INSTANCES_PER_POLICY: u32 = 64;
/// Address space kept for one memory. The default of 4 GiB saves bounds checks (at most 0.8 µs at 1,024 candidates)
/// and costs sixty times the address space.
const MEMORY_RESERVATION: u64 = 64 << 20;
/// Memory a slot keeps between instances instead of giving it back: more than policies use.
const KEEP_RESIDENT: usize = 1 << 20;
/// Stack for guest code, on the calling thread: well within the 2 MiB a thread has.
const GUEST_STACK: usize = 512 << 10;

/// wasmtime's engine with its settings and the clock of its deadlines: one a process. A clone is a handle.
#[derive(Debug, Clone)]
pub struct PolicyEngine(pub(crate) Arc<EngineParts>);

/// What the handles share.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) wasm: Engine,
    pub(crate) limits: PolicyLimits,
    pub(crate) ticker: Ticker,
    /// Held while compiling: one compilation at a time leaves the other cores to requests.
    pub(crate) compiling: Mutex<()>,
}

impl PolicyEngine {
    /// An engine whose policies may use what `limits` says. Starts one thread, which sleeps while no policy runs.
    ///
    /// # Errors
    /// This machine cannot run compiled WebAssembly, or gives no address space or thread.
    pub fn new(limits: PolicyLimits) -> Result<Self, AdmissionError> {
        let unsound =
            |error: wasmtime::Error| AdmissionError::Unsound(format!("no WebAssembly engine: {error:#}"));
        let pooled = Engine::new(config(limits).allocation_strategy(pool(limits)));
        let wasm = match pooled {
            Ok(engine) => engine,
            // Under a limit on address space (`ulimit -v`) memory is mapped as instances come.
            Err(error) => {
                tracing::warn!("no room for a pool of policy instances, starting them one by one: {error:#}");
                Engine::new(&config(limits)).map_err(unsound)?
            }
        };
        let ticker = Ticker::start(&wasm)
            .map_err(|error| AdmissionError::Unsound(format!("no thread for policy deadlines: {error}")))?;
        Ok(Self(Arc::new(EngineParts {
            wasm,
            limits,
            ticker,
            compiling: Mutex::new(()),
        })))
    }

    /// What policies may use.
    #[must_use]
    pub fn limits(&self) -> PolicyLimits {
        self.0.limits
    }
}

fn config(limits: PolicyLimits) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // Without it a call costs a quarter; no policy calls asynchronously.
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_reservation_for_growth(limits.max_memory_bytes as u64)
        // What differs between machines or needs more than a linear memory is of no use to a policy.
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    config
}

fn pool(limits: PolicyLimits) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MAX_INSTANCES)
        .total_core_instances(MAX_INSTANCES * 2)
        .total_memories(MAX_INSTANCES)
        .total_tables(MAX_INSTANCES * 2)
        .max_core_instances_per_component(MAX_CORE_INSTANCES_PER_POLICY)
        .max_memory_size(limits.max_memory_bytes)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .pagemap_scan(Enabled::Auto);
    InstanceAllocationStrategy::Pooling(pool)
}
