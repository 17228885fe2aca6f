// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-gpu`: arguments, logging, and then [`vfio_user_gpu::server::serve`].

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::info;
use vfio_user_gpu::device::Device;
use vfio_user_gpu::device::model::{ModelError, ModelGpu};
use vfio_user_gpu::function::Function;
use vfio_user_gpu::memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
use vfio_user_gpu::options::{OnDisconnect, Options, Sandbox};
use vfio_user_gpu::report;
use vfio_user_gpu::sandbox::{self, SandboxError};
use vfio_user_gpu::server::{
    Endpoint, EndpointError, ServeError, ServeOptions, Signals, SocketOptions, print_capabilities,
    serve,
};

/// Why the process ends with a failure.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("No device: pass --model")]
    NoDevice,
    #[error("No endpoint: pass --socket-path or --fd")]
    NoEndpoint,
    #[error("Software GPU")]
    Model(#[from] ModelError),
    #[error("Endpoint")]
    Endpoint(#[from] EndpointError),
    #[error("Sandbox (--sandbox off serves without)")]
    Sandbox(#[from] SandboxError),
    #[error("Serving failed")]
    Serve(#[from] ServeError),
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return refuse_arguments(&error),
    };
    if options.print_capabilities {
        println!("{}", print_capabilities());
        return ExitCode::SUCCESS;
    }
    let filter = env_logger::Env::default().default_filter_or(options.log_level.as_str());
    env_logger::Builder::from_env(filter).init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio-user-gpu: {}", report::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Help goes out as it is; what is wrong, as one line.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed stdout is nothing to report.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    eprintln!(
        "vfio-user-gpu: {} (--help lists the options)",
        line.trim_start_matches("error: ")
    );
    ExitCode::from(2)
}

fn run(options: Options) -> Result<(), Error> {
    let Some(model) = options.model else {
        return Err(Error::NoDevice);
    };
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
    let device: Arc<dyn Device> = Arc::new(ModelGpu::new(&model, Arc::clone(&memory))?);
    let signals = Signals::catch()?;
    let endpoint = match (&options.socket_path, options.fd) {
        (Some(path), _) => {
            let socket = SocketOptions {
                mode: options.socket_mode,
                group: options.socket_group,
            };
            Endpoint::bind(path, socket)?
        }
        (None, Some(fd)) => Endpoint::from_descriptor(fd)?,
        (None, None) => return Err(Error::NoEndpoint),
    };
    // Only now: a start that fails says so in its one line.
    info!("Serving the {}", device.name());
    let function = Arc::new(Function::new(device, memory));
    let serving = ServeOptions {
        reset_on_disconnect: options.on_disconnect == OnDisconnect::Reset,
        allowed_uids: options.allow_uid,
    };
    if options.sandbox == Sandbox::Strict {
        let path = options.socket_path.as_deref();
        sandbox::enter(path.map(folder), options.seccomp.into())?;
    }
    Ok(serve(endpoint, &signals, &function, &serving)?)
}

/// Where a path lies, as the system calls see it.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
