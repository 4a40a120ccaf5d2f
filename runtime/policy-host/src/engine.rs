//! The one wasmtime engine of a process, set up for many small guests that return in microseconds.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, component::Component,
};

use crate::{limits::PolicyLimits, ticker::Ticker};

/// Most core modules in one component. Languages other than Rust, C and AssemblyScript need several.
const MAX_CORE_INSTANCES_PER_POLICY: u32 = 64;
/// Most linear memories of one component; all together they have the limit of one instance. A policy has one.
const MAX_MEMORIES_PER_POLICY: u32 = 4;
/// Address space reserved for one memory, in bytes. wasmtime's default of 4 GiB saves bounds checks (at most 0.8 µs for
/// 1,024 candidates) but takes sixty times the address space.
const MEMORY_RESERVATION: u64 = 64 << 20;
/// Memory that a slot of the pool keeps between instances, in bytes: more than policies use.
const KEEP_RESIDENT: usize = 1 << 20;
/// Stack of guest code, in bytes. It is part of the calling thread's stack, which has 2 MiB.
const GUEST_STACK: usize = 512 << 10;

/// wasmtime's engine with the limits of policies and the clock of their deadlines. A process has one. A clone is a
/// handle.
#[derive(Debug, Clone)]
pub struct PolicyEngine(Arc<EngineInner>);

/// What all handles of an engine share.
#[derive(Debug)]
struct EngineInner {
    wasm: Engine,
    limits: PolicyLimits,
    ticker: Ticker,
    /// Held while a component is compiled: one compilation at a time leaves the other cores to requests.
    compiling: Mutex<()>,
}

/// Why an engine cannot start on this machine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Compiled WebAssembly does not run here, or there is too little address space.
    #[error("no WebAssembly engine starts: {0}")]
    WebAssembly(String),
    /// The system gives no thread.
    #[error("no thread for policy deadlines starts")]
    Thread(#[source] io::Error),
}

impl PolicyEngine {
    /// An engine whose policies have these limits. It starts one thread, which sleeps while no policy runs.
    ///
    /// # Errors
    /// This machine cannot run compiled WebAssembly, or gives no address space or thread.
    pub fn new(limits: PolicyLimits) -> Result<Self, EngineError> {
        let pooled = Engine::new(config(limits).allocation_strategy(pool(limits)));
        let wasm = match pooled {
            Ok(engine) => engine,
            // Under a limit on address space (`ulimit -v`), each instance maps its memory when it starts.
            Err(error) => {
                tracing::warn!(
                    "no address space for a pool of policy instances, each maps its own: {error:#}"
                );
                Engine::new(&config(limits))
                    .map_err(|error| EngineError::WebAssembly(format!("{error:#}")))?
            }
        };
        let ticker = Ticker::start(&wasm).map_err(EngineError::Thread)?;
        Ok(Self(Arc::new(EngineInner {
            wasm,
            limits,
            ticker,
            compiling: Mutex::new(()),
        })))
    }

    /// The limits of its policies.
    #[must_use]
    pub fn limits(&self) -> PolicyLimits {
        self.0.limits
    }

    pub(crate) fn wasm(&self) -> &Engine {
        &self.0.wasm
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }

    /// Compiles a component, when no other one is being compiled.
    pub(crate) fn compile(&self, wasm: &[u8]) -> wasmtime::Result<Component> {
        let _one_at_a_time = self.0.compiling.lock();
        Component::new(&self.0.wasm, wasm)
    }
}

fn config(limits: PolicyLimits) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // Without concurrency support a call costs a quarter. No policy needs asynchronous calls.
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_reservation_for_growth(limits.max_memory_bytes as u64)
        // Relaxed SIMD gives other results on other machines. No policy needs more than one small memory.
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    config
}

fn pool(limits: PolicyLimits) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    let instances = limits.max_instances;
    pool.total_component_instances(instances)
        // A policy that imports the log has two small ones beside its own, which connect it.
        .total_core_instances(instances * 4)
        .total_memories(instances)
        .total_tables(instances * 4)
        .max_core_instances_per_component(MAX_CORE_INSTANCES_PER_POLICY)
        .max_memories_per_component(MAX_MEMORIES_PER_POLICY)
        .max_memory_size(limits.max_memory_bytes)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .pagemap_scan(Enabled::Auto);
    InstanceAllocationStrategy::Pooling(pool)
}
