//! Whatever an engine does, its blocks here are among those it holds: a model of an engine sends its events, and is
//! compared after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// A block, by everything that its content depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Content {
    lora: &'static str,
    salt: &'static str,
    /// One number for each block of the prefix.
    prefix: Vec<u32>,
}

/// The engine: what it holds, as it knows it.
#[derive(Debug, Default)]
struct Engine {
    /// Copies on the device, at least one.
    device: BTreeMap<Content, usize>,
    host: BTreeSet<Content>,
    names: BTreeMap<Content, u64>,
    events: Vec<Value>,
}

#[derive(Debug, Clone)]
enum Step {
    /// Compute a prompt. With `again`, blocks that are held get a second copy.
    Serve {
        prompt: Content,
        again: bool,
    },
    /// Evict one copy of the nth block held.
    Evict(usize),
    /// Copy the nth block held to the host.
    Offload(usize),
    /// Evict the nth block of the host.
    EvictHost(usize),
    Clear,
    /// Lose the events of this step.
    Lose(Box<Self>),
}

impl Content {
    fn parent(&self) -> Option<Self> {
        let (_, before) = self.prefix.split_last()?;
        (!before.is_empty()).then(|| Self {
            prefix: before.to_vec(),
            ..*self
        })
    }

    fn hash(&self) -> SequenceHash {
        let tokens: Vec<_> = self.prefix.iter().flat_map(|&block| [block, block]).collect();
        *router(self.lora, self.salt, &tokens).last().unwrap()
    }
}

impl Engine {
    fn name(&mut self, block: &Content) -> u64 {
        let next = self.names.len() as u64 + 100;
        *self.names.entry(block.clone()).or_insert(next)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Serve { prompt, again } => self.serve(prompt, *again),
            Step::Evict(nth) => {
                let Some(block) = nth_of(self.device.keys(), *nth) else {
                    return;
                };
                let copies = self.device.get_mut(&block).unwrap();
                *copies -= 1;
                if *copies == 0 {
                    self.device.remove(&block);
                }
                let name = self.name(&block);
                self.events.push(remove(&[name], GPU));
            }
            Step::Offload(nth) => {
                if let Some(block) = nth_of(self.device.keys(), *nth) {
                    let name = self.name(&block);
                    self.events.push(copy(&[name]));
                    self.host.insert(block);
                }
            }
            Step::EvictHost(nth) => {
                if let Some(block) = nth_of(self.host.iter(), *nth) {
                    self.host.remove(&block);
                    let name = self.name(&block);
                    self.events.push(remove(&[name], CPU));
                }
            }
            Step::Clear => {
                self.device.clear();
                self.host.clear();
                self.events.push(json!({"type": "AllBlocksCleared"}));
            }
            Step::Lose(step) => self.step(step),
        }
    }

    /// Holds all blocks of the prompt, and reports each run of new ones.
    fn serve(&mut self, prompt: &Content, again: bool) {
        let mut run: Vec<Content> = Vec::new();
        for end in 1..=prompt.prefix.len() {
            let block = Content {
                prefix: prompt.prefix[..end].to_vec(),
                ..*prompt
            };
            if !self.device.contains_key(&block) || again {
                *self.device.entry(block.clone()).or_default() += 1;
                run.push(block);
            } else {
                self.report(std::mem::take(&mut run));
            }
        }
        self.report(run);
    }

    fn report(&mut self, run: Vec<Content>) {
        let Some(first) = run.first() else {
            return;
        };
        let (lora, salt) = (first.lora, first.salt);
        let parent = first.parent().map(|parent| self.name(&parent));
        let tokens: Vec<_> = run
            .iter()
            .flat_map(|block| [*block.prefix.last().unwrap(); 2])
            .collect();
        let names: Vec<_> = run.iter().map(|block| self.name(block)).collect();
        let keys: Vec<_> = run
            .iter()
            .map(|block| {
                let salted = block.prefix.len() == 1;
                let keys = [lora, if salted { salt } else { "" }];
                let keys: Vec<_> = keys.into_iter().filter(|key| !key.is_empty()).collect();
                (!keys.is_empty()).then_some(keys)
            })
            .collect();
        let lora_name = (!lora.is_empty()).then_some(lora);
        self.events.push(with(
            store(&names, parent, &tokens),
            json!({"lora_name": lora_name, "extra_keys": keys}),
        ));
    }
}

fn nth_of<'a>(mut blocks: impl ExactSizeIterator<Item = &'a Content>, nth: usize) -> Option<Content> {
    let len = blocks.len();
    (len > 0).then(|| blocks.nth(nth % len).unwrap().clone())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let prompt = (
        prop_oneof![Just(""), Just("lora")],
        prop_oneof![Just(""), Just("salt")],
        prop::collection::vec(0..2_u32, 1..5),
    );
    let serve = (prompt, prop::bool::weighted(0.15)).prop_map(|((lora, salt, prefix), again)| Step::Serve {
        prompt: Content { lora, salt, prefix },
        again,
    });
    let step = prop_oneof![
        6 => serve,
        5 => any::<usize>().prop_map(Step::Evict),
        2 => any::<usize>().prop_map(Step::Offload),
        2 => any::<usize>().prop_map(Step::EvictHost),
        1 => Just(Step::Clear),
    ];
    let step = (step, prop::bool::weighted(0.05)).prop_map(|(step, lose)| match lose {
        true => Step::Lose(Box::new(step)),
        false => step,
    });
    prop::collection::vec(step, 1..60)
}

/// Applies changes as a router does.
fn fold(held: &mut BTreeMap<SequenceHash, u8>, changes: &[KvEvent]) {
    for change in changes {
        match change {
            KvEvent::Stored { tier, blocks, .. } => {
                for &block in blocks {
                    *held.entry(block).or_default() |= 1 << tier.index();
                }
            }
            KvEvent::Removed { tier, blocks } => {
                for &block in blocks {
                    *held.entry(block).or_default() &= !(1 << tier.index());
                }
            }
            KvEvent::Cleared => held.clear(),
        }
    }
    held.retain(|_, tiers| *tiers != 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_block_is_credited_only_if_the_engine_holds_it(steps in steps()) {
        let (mut engine, mut blocks, mut at_router) = (Engine::default(), blocks(), BTreeMap::new());
        let mut is_exact = true;
        for step in &steps {
            engine.step(step);
            let events = std::mem::take(&mut engine.events);
            let mut changes = Vec::new();
            if let Step::Lose(_) = step {
                blocks.forget(&mut changes);
            } else {
                changes = apply(&mut blocks, Value::Array(events));
            }
            // Copies and losses make the engine hold more than is known, until it holds nothing.
            let has_copies = engine.device.values().any(|&copies| copies > 1);
            is_exact = match step {
                Step::Clear => true,
                Step::Lose(_) => false,
                _ => is_exact && !has_copies,
            };
            let by_hash: BTreeMap<_, _> =
                engine.names.keys().map(|block| (block.hash(), block.clone())).collect();
            for change in &changes {
                let KvEvent::Stored { parent, blocks, .. } = change else { continue };
                let mut before = *parent;
                for block in blocks {
                    let parent = by_hash[block].parent().map(|parent| parent.hash());
                    prop_assert_eq!(parent, before, "a chain of blocks that do not follow each other");
                    before = Some(*block);
                }
            }
            fold(&mut at_router, &changes);
            for (hash, block) in &by_hash {
                let tiers = u8::from(engine.device.contains_key(block)) | u8::from(engine.host.contains(block)) << 1;
                let credited = blocks.recall.tiers(*hash);
                prop_assert_eq!(at_router.get(hash).copied().unwrap_or(0), credited, "routers are behind");
                prop_assert_eq!(credited & !tiers, 0, "{:?} is credited and not held", block);
                if is_exact {
                    prop_assert_eq!(credited, tiers, "{:?} is held and not credited", block);
                }
            }
            prop_assert_eq!(blocks.held(), at_router.len());
        }
        prop_assert_eq!(blocks.dropped().count(DropCause::Conflict), 0);
    }
}
