// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draws a picture through the kernel's own display driver, then waits so that the test can look at it.

use std::{
    error::Error,
    fs::{File, OpenOptions},
    io::stdin,
    os::fd::{AsFd, BorrowedFd},
};

use drm::{
    Device as _,
    buffer::{Buffer, DrmFourcc},
    control::{ClipRect, Device as _, connector},
};
use system_tests::pattern;

use crate::{Outcome, say};

/// The mode: one whose lines are no power of two, so that a wrong line length shows.
const SIZE: (u16, u16) = (800, 600);

/// A DRM card's file.
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

/// Sets a mode on the first output and fills the screen with [`pattern::pixel`].
pub fn draw() -> Outcome {
    let path = "/dev/dri/card0";
    let file = OpenOptions::new().read(true).write(true).open(path);
    let card = Card(file.map_err(|error| format!("{path}: {error}"))?);
    let driver = card.get_driver()?;
    let name = driver.name().to_string_lossy();
    if !name.starts_with("bochs") {
        return Err(format!("the driver is {name}, not bochs").into());
    }
    let resources = card.resource_handles()?;
    let connector = *resources.connectors().first().ok_or("no connector")?;
    let crtc = *resources.crtcs().first().ok_or("no CRTC")?;
    let mode = mode(&card.get_connector(connector, true)?)?;

    let (width, height) = (u32::from(SIZE.0), u32::from(SIZE.1));
    let mut buffer = card.create_dumb_buffer((width, height), DrmFourcc::Xrgb8888, 32)?;
    let pitch = usize::try_from(buffer.pitch())?;
    {
        let mut pixels = card.map_dumb_buffer(&mut buffer)?;
        for (y, line) in (0..height).zip(pixels.chunks_exact_mut(pitch)) {
            for (x, place) in (0..width).zip(line.chunks_exact_mut(4)) {
                place.copy_from_slice(&pattern::pixel(x, y).to_le_bytes());
            }
        }
    }
    let framebuffer = card.add_framebuffer(&buffer, 24, 32)?;
    card.set_crtc(crtc, Some(framebuffer), (0, 0), &[connector], Some(mode))
        .map_err(|error| format!("no mode set: {error}"))?;
    // Drivers that draw through a copy want to be told; those that draw in VRAM refuse, and need not.
    let _ = card.dirty_framebuffer(framebuffer, &[ClipRect::new(0, 0, SIZE.0, SIZE.1)]);

    say("ready draw");
    stdin().read_line(&mut String::new())?;
    Ok(())
}

fn mode(connector: &connector::Info) -> Result<drm::control::Mode, Box<dyn Error>> {
    let modes = connector.modes();
    let found = modes.iter().find(|mode| mode.size() == SIZE);
    found.copied().ok_or_else(|| {
        let sizes: Vec<_> = modes.iter().map(drm::control::Mode::size).collect();
        format!("no mode {SIZE:?} in {sizes:?}").into()
    })
}
