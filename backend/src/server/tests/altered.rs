// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model GPU that resets, migrates and tells what it wrote as a test has it.

use std::fmt;
use std::sync::Arc;

use crate::device::model::ModelGpu;
use crate::device::{Device, Error, Mapping, Region, ResetCause};
use crate::interrupts::{Delivery, IrqConfig, IrqInfo, IrqRequest};
use crate::memory::DirtyTracker;
use crate::migration::MigrationDriver;
use crate::pci::ConfigSpace;

type Reset = dyn Fn(&ModelGpu, ResetCause) -> Result<(), Error> + Send + Sync;

pub(super) struct Altered {
    gpu: ModelGpu,
    reset: Box<Reset>,
    pub(super) driver: Option<Arc<dyn MigrationDriver>>,
    pub(super) tracker: Option<Arc<dyn DirtyTracker>>,
}

impl Altered {
    pub(super) fn new(
        gpu: ModelGpu,
        reset: impl Fn(&ModelGpu, ResetCause) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        Self {
            gpu,
            reset: Box::new(reset),
            driver: None,
            tracker: None,
        }
    }
}

impl fmt::Debug for Altered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gpu.fmt(f)
    }
}

impl Device for Altered {
    fn name(&self) -> String {
        self.gpu.name()
    }
    fn config_space(&self) -> ConfigSpace {
        self.gpu.config_space()
    }
    fn migration(&self) -> Option<&dyn MigrationDriver> {
        match &self.driver {
            Some(driver) => Some(&**driver),
            None => self.gpu.migration(),
        }
    }
    fn dirty_tracker(&self) -> Option<Arc<dyn DirtyTracker>> {
        self.tracker.clone()
    }
    fn resettable(&self) -> bool {
        true
    }
    fn region(&self, index: u32) -> Region {
        self.gpu.region(index)
    }
    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        self.gpu.mapping(index)
    }
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.gpu.read(region, offset, data)
    }
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.gpu.write(region, offset, data)
    }
    fn irq(&self, index: u32) -> IrqInfo {
        self.gpu.irq(index)
    }
    fn set_irqs(&self, request: IrqRequest) -> Result<(), Error> {
        self.gpu.set_irqs(request)
    }
    fn set_delivery(&self, delivery: Delivery) {
        self.gpu.set_delivery(delivery);
    }
    fn set_irq_config(&self, config: IrqConfig) {
        self.gpu.set_irq_config(config);
    }
    fn set_vector_mask(&self, index: u32, vector: u32, masked: bool) {
        self.gpu.set_vector_mask(index, vector, masked);
    }
    fn vector_pending(&self, index: u32, vector: u32) -> bool {
        self.gpu.vector_pending(index, vector)
    }
    fn interrupt_status(&self) -> bool {
        self.gpu.interrupt_status()
    }
    fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        (self.reset)(&self.gpu, cause)
    }
    fn release_irqs(&self) {
        self.gpu.release_irqs();
    }
}
