// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts, seen where they arrive: messages as writes to guest RAM, INTx at the interrupt controller's input.

use system_tests::{
    model_gpu::{self, engine},
    pci,
    qtest::Qtest,
};

use crate::rig::{ENGINE, RAM, Rig};

/// Where the message of vector n is sent: RAM + 4 n.
const fn message_address(vector: u16) -> u64 {
    RAM + 4 * vector as u64
}

fn message_data(vector: u16) -> u32 {
    0xa5a5_0000 | u32::from(vector)
}

/// An entry of the MSI-X table.
fn table_entry(vector: u16) -> u64 {
    u64::from(ENGINE) + model_gpu::MSIX_TABLE + 16 * u64::from(vector)
}

/// Sets the mask bit of a vector.
#[track_caller]
fn mask(qtest: &mut Qtest, vector: u16, masked: bool) {
    qtest.writel(table_entry(vector) + 12, u32::from(masked));
}

/// Programs every vector to write its data to its place in RAM, enables MSI-X and all events.
#[track_caller]
fn enable_msix(rig: &mut Rig) {
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    for vector in 0..model_gpu::VECTORS {
        qtest.writeq(table_entry(vector), message_address(vector));
        qtest.writel(table_entry(vector) + 8, message_data(vector));
        mask(qtest, vector, false);
    }
    let msix = gpu.capability(qtest, pci::CAP_MSIX);
    gpu.write16(qtest, msix + 2, 1 << 15);
    rig.write32(engine::INT_ENABLE, u32::MAX);
}

#[track_caller]
fn wait_for_message(qtest: &mut Qtest, vector: u16) {
    qtest.wait_for(&format!("the message of vector {vector}"), |qtest| {
        (qtest.readl(message_address(vector)) == message_data(vector)).then_some(())
    });
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn msix_messages_arrive_at_their_own_addresses() {
    let mut rig = Rig::new();
    enable_msix(&mut rig);
    for vector in [0, 3, 7, 1] {
        rig.write32(engine::INT_RAISE, 1 << vector);
        wait_for_message(rig.qtest(), vector);
    }
    for vector in [2, 4, 5, 6] {
        let seen = rig.qtest().readl(message_address(vector));
        assert_eq!(seen, 0, "vector {vector} had no event");
    }
    // A second event of a vector is a second message.
    rig.qtest().writel(message_address(3), 0);
    rig.write32(engine::INT_STATUS, 1 << 3);
    rig.write32(engine::INT_RAISE, 1 << 3);
    wait_for_message(rig.qtest(), 3);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn an_event_that_is_not_enabled_sends_nothing() {
    let mut rig = Rig::new();
    enable_msix(&mut rig);
    rig.write32(engine::INT_ENABLE, 1 << 5);
    rig.write32(engine::INT_RAISE, 1 << 4 | 1 << 5);
    wait_for_message(rig.qtest(), 5);
    assert_eq!(rig.qtest().readl(message_address(4)), 0);
    assert_eq!(rig.read32(engine::INT_STATUS), 1 << 4 | 1 << 5);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_masked_vector_is_delivered_when_it_is_unmasked() {
    let mut rig = Rig::new();
    enable_msix(&mut rig);
    mask(rig.qtest(), 2, true);
    rig.write32(engine::INT_RAISE, 1 << 2);
    // A later message that did arrive shows that the masked one had its chance.
    rig.write32(engine::INT_RAISE, 1 << 6);
    wait_for_message(rig.qtest(), 6);
    assert_eq!(
        rig.qtest().readl(message_address(2)),
        0,
        "vector 2 is masked"
    );
    mask(rig.qtest(), 2, false);
    wait_for_message(rig.qtest(), 2);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_command_that_ends_interrupts_by_its_vector() {
    let mut rig = Rig::new();
    enable_msix(&mut rig);
    let command = engine::COMMAND_FILL
        | engine::COMMAND_DST_VRAM
        | engine::COMMAND_EVENT
        | 5 << engine::COMMAND_VECTOR_SHIFT;
    rig.start(command, 0, 0, 1 << 20);
    wait_for_message(rig.qtest(), 5);
    let status = rig.read32(engine::STATUS);
    assert_eq!(
        status,
        engine::STATUS_DONE,
        "when the message is there, the command is done"
    );
    assert_eq!(rig.read64(engine::COMPLETED), 1 << 20);
    assert_eq!(rig.read32(engine::INT_STATUS), 1 << 5);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn an_msi_message_arrives() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    let msi = gpu.capability(qtest, pci::CAP_MSI);
    let control = gpu.read16(qtest, msi + 2);
    let address = u32::try_from(message_address(0)).expect("RAM is below 4 GiB");
    gpu.write32(qtest, msi + 4, address);
    let is_64_bit = control & 1 << 7 != 0;
    if is_64_bit {
        gpu.write32(qtest, msi + 8, 0);
    }
    // MSI has 16 bits of data; the upper half of the message is 0.
    gpu.write16(qtest, msi + if is_64_bit { 12 } else { 8 }, 0x4d51);
    gpu.write16(qtest, msi + 2, control | 1);
    rig.write32(engine::INT_ENABLE, 1);
    rig.write32(engine::INT_RAISE, 1);
    rig.qtest().wait_for("the MSI message", |qtest| {
        (qtest.readl(message_address(0)) == 0x4d51).then_some(())
    });
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn intx_is_a_level() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    rig.qtest().intercept_irqs("ioapic");
    let interrupt_status =
        |rig: &mut Rig| gpu.read16(rig.qtest(), pci::STATUS) & pci::STATUS_INTERRUPT != 0;
    // Asking for something cheap makes QEMU send what it has to say about interrupts.
    let wait_for_level = |rig: &mut Rig, level: bool| {
        rig.qtest()
            .wait_for(&format!("INTx to be {level}"), |qtest| {
                qtest.readl(RAM);
                (qtest.irqs_high().is_empty() != level).then_some(())
            });
    };
    rig.write32(engine::INT_RAISE, 1 << 1);
    assert!(!interrupt_status(&mut rig), "the event is not enabled");

    rig.write32(engine::INT_ENABLE, 1 << 1);
    wait_for_level(&mut rig, true);
    assert!(interrupt_status(&mut rig));
    let line = rig.qtest().irqs_high()[0];

    // QEMU takes any access to the device for the end of an interrupt, and asks again: still there.
    let raises = rig.qtest().irq_raises(line);
    assert_eq!(rig.read32(engine::INT_STATUS), 1 << 1);
    rig.qtest().wait_for("INTx to be raised again", |qtest| {
        qtest.readl(RAM);
        (qtest.irq_raises(line) > raises && qtest.irq_level(line)).then_some(())
    });

    // Acknowledged: low, and it stays low.
    rig.write32(engine::INT_STATUS, 1 << 1);
    wait_for_level(&mut rig, false);
    assert!(!interrupt_status(&mut rig));

    // The disable bit holds the line, not the status.
    gpu.set_command(rig.qtest(), pci::COMMAND_INTX_DISABLE);
    let raises = rig.qtest().irq_raises(line);
    rig.write32(engine::INT_RAISE, 1 << 1);
    assert!(interrupt_status(&mut rig));
    assert_eq!(rig.qtest().irq_raises(line), raises, "INTx is disabled");
    gpu.clear_command(rig.qtest(), pci::COMMAND_INTX_DISABLE);
    wait_for_level(&mut rig, true);
}
