// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which capabilities a guest is shown: a table of rules over both lists, and what is inserted. Whatever the rules, the
//! lists come out well formed (`lists.rs`).
//!
//! | rule | the capability |
//! |---|---|
//! | pass | is shown as the device has it |
//! | hide | is not in the list, reads zero, and takes no writes |
//! | replace | is shown with registers of ours |
//! | insert | is ours, at a place of its own |

use super::{
    ConfigSpace, Register, RegisterBlock,
    layout::overlaps,
    lengths::u32_at,
    lists::{Entry, Lists},
    registers::*,
};

/// What becomes of a capability. Those that no rule names pass.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Shown as the device has it.
    Pass,
    /// Not shown.
    Hide,
    /// Shown with these registers, made from its own bytes; hidden where none can be made.
    Replace(fn(&[u8]) -> Option<RegisterBlock>),
}

/// What no guest is shown.
///
/// | id | why |
/// |---|---|
/// | SR-IOV, VF resizable BARs, MR-IOV | virtual functions are the host's to make; BARs of theirs that cannot be sized confuse firmware |
/// | ARI | its next function is another device to the guest |
/// | resizable BARs | the size is the host's choice: what the kernel has mapped cannot change under it |
///
/// All others pass, as they do with QEMU: what the kernel's vfio-pci does not know it hides itself.
const EXTENDED: &[(u16, Rule)] = &[
    (PCI_EXT_CAP_ID_SRIOV, Rule::Hide),
    (PCI_EXT_CAP_ID_VF_REBAR, Rule::Hide),
    (PCI_EXT_CAP_ID_MRIOV, Rule::Hide),
    (PCI_EXT_CAP_ID_ARI, Rule::Hide),
    (PCI_EXT_CAP_ID_REBAR, Rule::Replace(current_size_only)),
];

/// What needs an IOMMU that the guest programs. The VMM would have to invalidate the device's translations when the
/// guest does, and vfio-user has no message for it: a guest that enables ATS without that reads and writes stale pages.
const ADDRESS_TRANSLATION: &[(u16, Rule)] = &[
    (PCI_EXT_CAP_ID_ATS, Rule::Hide),
    (PCI_EXT_CAP_ID_PRI, Rule::Hide),
    (PCI_EXT_CAP_ID_PASID, Rule::Hide),
];

/// Rules for both lists, and insertions. The first rule for an id counts.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// By id, in the standard list.
    pub standard: Vec<(u8, Rule)>,
    /// By id, in the extended list.
    pub extended: Vec<(u16, Rule)>,
    /// At the end of the standard list: where, and the registers. The header is written by the list.
    pub insert: Vec<(u8, u16, RegisterBlock)>,
    /// At the end of the extended list: id, version, where, and the registers.
    pub insert_extended: Vec<(u16, u8, u16, RegisterBlock)>,
}

/// Why there is no such config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Another capability has some of the bytes, or they are outside.
    #[error("No room for capability {id:#x} of {len} bytes at {at:#x}")]
    NoRoom {
        /// What was to be inserted.
        id: u16,
        /// Where.
        at: u16,
        /// Its bytes.
        len: usize,
    },
}

impl Policy {
    /// What guests are shown by default; with `ats` also the capabilities of address translation.
    #[must_use]
    pub fn for_guests(ats: bool) -> Self {
        let mut extended = EXTENDED.to_vec();
        if !ats {
            extended.extend_from_slice(ADDRESS_TRANSLATION);
        }
        Self {
            extended,
            ..Self::default()
        }
    }

    /// Applies the rules to a config space whose lists are well formed.
    ///
    /// # Errors
    /// [`PolicyError`]; the space is then not to be used.
    pub fn apply(&self, config: &mut ConfigSpace) -> Result<(), PolicyError> {
        let mut lists = Lists::of(config.bytes());
        lists.standard.retain(|entry| {
            let same = |(id, _): &&(u8, Rule)| u16::from(*id) == entry.id;
            let rule = self.standard.iter().find(same);
            follow(config, entry, rule.map_or(Rule::Pass, |(_, rule)| *rule))
        });
        lists.extended.retain(|entry| {
            let same = |(id, _): &&(u16, Rule)| *id == entry.id;
            let rule = self.extended.iter().find(same);
            follow(config, entry, rule.map_or(Rule::Pass, |(_, rule)| *rule))
        });
        for (id, at, registers) in &self.insert {
            let window = PCI_STD_HEADER_SIZEOF..PCI_CFG_SPACE_SIZE;
            let entry = (u16::from(*id), 0, *at);
            insert(config, &mut lists.standard, entry, registers, window)?;
        }
        let size = u16::try_from(config.bytes().len()).unwrap_or(PCI_CFG_SPACE_EXP_SIZE);
        for (id, version, at, registers) in &self.insert_extended {
            let window = PCI_EXT_CAP_START..size;
            let entry = (*id, *version, *at);
            insert(config, &mut lists.extended, entry, registers, window)?;
        }
        config.link(&lists);
        Ok(())
    }
}

/// Carries out a rule; whether the capability stays in its list.
fn follow(config: &mut ConfigSpace, entry: &Entry, rule: Rule) -> bool {
    let registers = match rule {
        Rule::Pass => return true,
        Rule::Hide => None,
        Rule::Replace(make) => {
            let range = usize::from(entry.at)..usize::from(entry.at + entry.len);
            config.bytes().get(range).and_then(make)
        }
    };
    let mut block = RegisterBlock::new(entry.len.into(), &[]);
    let shown = registers.filter(|registers| registers.len() <= block.len());
    if let Some(registers) = &shown {
        block.put_block(0, registers);
    }
    config.compose_block(entry.at, &block);
    shown.is_some()
}

fn insert(
    config: &mut ConfigSpace,
    list: &mut Vec<Entry>,
    (id, version, at): (u16, u8, u16),
    registers: &RegisterBlock,
    window: std::ops::Range<u16>,
) -> Result<(), PolicyError> {
    let len = registers.len();
    let no_room = PolicyError::NoRoom { id, at, len };
    let end = u16::try_from(len).ok().and_then(|len| at.checked_add(len));
    let end = end.filter(|end| at % 4 == 0 && at >= window.start && *end <= window.end);
    let range = at..end.ok_or(no_room)?;
    if range.is_empty()
        || list
            .iter()
            .any(|other| overlaps(&range, &(other.at..other.end())))
    {
        return Err(no_room);
    }
    config.compose_block(at, registers);
    let len = range.end - at;
    list.push(Entry {
        id,
        version,
        at,
        len,
    });
    Ok(())
}

/// Resizable BARs, each with the size that it has as its only one.
fn current_size_only(bytes: &[u8]) -> Option<RegisterBlock> {
    /// From here on a size has no bit in the capabilities register: 2^(20 + 20) bytes.
    const TOO_LARGE: u32 = 20;
    let mut block = RegisterBlock::new(bytes.len(), &[]);
    let count = (u32_at(bytes, PCI_REBAR_CTRL) & PCI_REBAR_CTRL_NBAR) >> PCI_REBAR_CTRL_NBAR_SHIFT;
    let length = usize::try_from(4 + 8 * count).ok()?;
    if count == 0 || count > 6 || bytes.len() < length {
        return None;
    }
    for bar in (0..8 * count).step_by(8) {
        let bar = u16::try_from(bar).ok()?;
        let control = u32_at(bytes, bar + PCI_REBAR_CTRL);
        let size = (control & PCI_REBAR_CTRL_BAR_SIZE) >> PCI_REBAR_CTRL_BAR_SHIFT;
        if size >= TOO_LARGE {
            return None;
        }
        let kept = PCI_REBAR_CTRL_BAR_SIZE | PCI_REBAR_CTRL_NBAR | PCI_REBAR_CTRL_BAR_IDX;
        block.put(Register::dword(bar + PCI_REBAR_CAP, 1 << (size + 4)));
        block.put(Register::dword(bar + PCI_REBAR_CTRL, control & kept));
    }
    Some(block)
}

#[cfg(test)]
mod tests;
