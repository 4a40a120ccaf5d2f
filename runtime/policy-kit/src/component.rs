//! Makes a component of a core module.
//!
//! A compiler for C makes a core module. Around it goes the frame that every policy without optional exports has: the same
//! types, imports, exports and lowered functions. The frame is that of a built-in policy, `round-robin`, whose core module is
//! replaced. So an author of policies in C needs no tool but a compiler. Whether module and frame fit is checked where every
//! component is: when it is admitted.

use signalbox_policy_host::builtin_policies;

/// The policy whose frame is used.
const FRAME: &str = "round-robin";
/// How a binary component begins: the magic number, the version of components and the layer.
const COMPONENT_HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
/// How a core module begins.
const MODULE_HEADER: &[u8] = b"\0asm\x01\0\0\0";
/// The section of a component that is a core module. The first one is the policy's own.
const MODULE_SECTION: u8 = 1;

/// The component around a core module whose imports and exports have the names that `wit-bindgen` gives them for the world
/// `policy`. `None` if `module` is no core module.
#[must_use]
pub fn component_of(module: &[u8]) -> Option<Vec<u8>> {
    module.strip_prefix(MODULE_HEADER)?;
    let (_, frame) = builtin_policies().into_iter().find(|(name, _)| *name == FRAME)?;
    let (before, after) = around_module(frame)?;
    let mut component = before.to_vec();
    component.push(MODULE_SECTION);
    write_leb128(u32::try_from(module.len()).ok()?, &mut component);
    component.extend_from_slice(module);
    component.extend_from_slice(after);
    Some(component)
}

/// What stands before and after the section of the first core module.
fn around_module(component: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = component.strip_prefix(COMPONENT_HEADER)?;
    while let Some((&section, rest)) = at.split_first() {
        let (size, content) = read_leb128(rest)?;
        let after = content.get(size as usize..)?;
        if section == MODULE_SECTION {
            return Some((&component[..component.len() - at.len()], after));
        }
        at = after;
    }
    None
}

fn read_leb128(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(5).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

fn write_leb128(mut value: u32, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use signalbox_policy_host::{Decision, PolicyEngine, PolicyLimits, trial_requests};

    use super::*;

    fn builtin(name: &str) -> &'static [u8] {
        let mut all = builtin_policies().into_iter();
        all.find(|(builtin, _)| *builtin == name).unwrap().1
    }

    fn core_module(component: &[u8]) -> Vec<u8> {
        let (before, after) = around_module(component).unwrap();
        let section = &component[before.len() + 1..component.len() - after.len()];
        read_leb128(section).unwrap().1.to_vec()
    }

    #[test]
    fn a_module_in_the_frame_of_another_policy_decides_as_in_its_own() {
        let engine = PolicyEngine::new(PolicyLimits::default()).unwrap();
        let original = builtin("replica-synced");
        let framed = component_of(&core_module(original)).unwrap();
        let mut instances =
            [original, &framed[..]].map(|wasm| engine.admit(wasm, "").unwrap().instantiate().unwrap());
        for (request, candidates) in trial_requests(&[1, 8, 64], 8) {
            let decisions = instances.each_mut().map(|instance| {
                let mut decision = Decision::default();
                instance.decide(&request, &candidates, &mut decision).unwrap();
                decision
            });
            assert_eq!(decisions[0], decisions[1]);
        }
    }

    #[test]
    fn what_is_no_core_module_is_refused() {
        assert_eq!(component_of(b""), None);
        assert_eq!(component_of(builtin("kv-aware")), None);
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for value in [0, 1, 127, 128, 300, 65_535, u32::MAX] {
            let mut bytes = Vec::new();
            write_leb128(value, &mut bytes);
            bytes.push(9);
            assert_eq!(read_leb128(&bytes), Some((value, &[9_u8][..])));
        }
        assert_eq!(read_leb128(&[0x80; 6]), None);
    }
}
