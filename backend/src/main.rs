// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-gpu`: arguments, logging, and then [`vfio_user_gpu::server::serve`].

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::info;
use rustix::process::{Resource, getrlimit, setrlimit};
use vfio_user_gpu::device::Device;
use vfio_user_gpu::device::kernel::{self, Companion, KernelDevice, KernelError, OpenError, Roots};
use vfio_user_gpu::device::model::dump::{DumpedError, DumpedGpu};
use vfio_user_gpu::device::model::{ModelError, ModelGpu};
use vfio_user_gpu::function::{ComposeError, Function};
use vfio_user_gpu::memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
use vfio_user_gpu::options::{OnDisconnect, Options, Sandbox};
use vfio_user_gpu::pci::GuestView;
use vfio_user_gpu::privileges::{PrivilegeError, User};
use vfio_user_gpu::quirks::igd::OpRegionUse;
use vfio_user_gpu::report;
use vfio_user_gpu::sandbox::{self, SandboxError};
use vfio_user_gpu::server::{
    Endpoint, EndpointError, ServeError, ServeOptions, Signals, SocketOptions, print_capabilities,
    serve,
};

/// Why the process ends with a failure.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("No device: pass --device, --device-fd or --model")]
    NoDevice,
    #[error("Descriptor {0} is named by two options")]
    SharedDescriptor(i32),
    #[error("No endpoint: pass --socket-path or --fd")]
    NoEndpoint,
    #[error("Software GPU")]
    Model(#[from] ModelError),
    #[error("Software GPU")]
    Dumped(#[from] DumpedError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
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
        return match writeln!(io::stdout(), "{}", print_capabilities()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("vfio-user-gpu: Capabilities not printed: {error}");
                ExitCode::FAILURE
            }
        };
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
    // What is missing stands on lines of its own, up to the usage.
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let line = lines.split(|line| line.is_empty()).next();
    let line = line.unwrap_or_default().join(" ");
    eprintln!(
        "vfio-user-gpu: {} (--help lists the options)",
        line.trim_start_matches("error: ")
    );
    ExitCode::from(2)
}

/// The kernel's device that the options name, while this process still may open it.
fn open(options: &Options) -> Result<Option<kernel::Opened>, Error> {
    if let Some(device) = &options.device {
        let token = options.vf_token.as_ref();
        return Ok(Some(kernel::open(&Roots::default(), device, token)?));
    }
    let companion = match (options.iommufd_fd, options.container_fd) {
        (Some(fd), _) => Companion::Iommufd(fd),
        (None, Some(fd)) => Companion::Container(fd),
        (None, None) => return Ok(None),
    };
    let adopted = options.device_fd.map(|fd| kernel::adopt(fd, companion));
    let mut adopted = adopted.transpose()?;
    if let Some(opened) = &mut adopted {
        let by = format!("whoever handed it over, with the {}", companion.what());
        opened.device.origin = vec![("opened by", by)];
    }
    Ok(adopted)
}

/// Guest memory that this process itself must write to, where the view needs that.
fn reached(memory: AddressSpace, view: &GuestView) -> AddressSpace {
    match view.igd.opregion {
        OpRegionUse::Copy => memory.keeping_descriptors(),
        OpRegionUse::Off | OpRegionUse::Serve => memory,
    }
}

/// The software GPU.
fn model(options: &Options) -> Result<(Arc<dyn Device>, Arc<AddressSpace>), Error> {
    let model = options.model.as_ref().ok_or(Error::NoDevice)?;
    if let Some(config) = &model.config {
        let memory = AddressSpace::new(CpuAccess::TrackedOnly, DEFAULT_MAX_MAPS);
        let memory = reached(memory, &options.view.view());
        return Ok((Arc::new(DumpedGpu::open(config, model)?), Arc::new(memory)));
    }
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
    let device = ModelGpu::new(model, Arc::clone(&memory))?;
    Ok((Arc::new(device), memory))
}

/// As many descriptors as may be had: a client has an eventfd for each of up to 2048 vectors.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Not more than before will do for most devices.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn run(options: Options) -> Result<(), Error> {
    raise_descriptor_limit();
    if let Some(fd) = options.shared_descriptor() {
        return Err(Error::SharedDescriptor(fd));
    }
    // The user is looked up before anything is opened: a typing error must cost nothing.
    let user = options.user.as_deref().map(User::find).transpose()?;
    let view = options.view.view();
    let opened = open(&options)?;
    if let Some(user) = user {
        user.become_for_good()?;
    }
    let (device, memory) = match opened {
        Some(opened) => {
            let memory = AddressSpace::with_iommu(opened.iommu, DEFAULT_MAX_MAPS);
            let memory = reached(memory, &view);
            let device = KernelDevice::new(opened.device, options.bar_handoff)?;
            (Arc::new(device) as Arc<dyn Device>, Arc::new(memory))
        }
        None => model(&options)?,
    };
    let name = device.name();
    let function = Arc::new(Function::new(device, memory, &view)?);
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
    info!("Serving the {name}");
    if let quirks @ [_, ..] = &*function.quirks() {
        info!("Quirks of this device: {}", quirks.join(", "));
    }
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
