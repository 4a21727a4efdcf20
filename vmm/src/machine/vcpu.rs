//! vCPU threads: a loop around `KVM_RUN`, and a gate at which all of them wait while the machine is paused.
//!
//! Lock order: a vCPU's `fd` is locked by its own thread from the moment it passes the gate until it is back before
//! it. So whoever sees every vCPU parked may lock each `fd`, and only then.
//!
//! A kick is `immediate_exit` in the vCPU's `kvm_run`, then a signal. Set before `KVM_RUN`, it makes `KVM_RUN` return
//! at once; in `KVM_RUN`, the signal does. There is no instant in between (kernel document `virt/kvm/api`,
//! `immediate_exit`).
#![allow(unsafe_code)]

use std::{
    io,
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
};

use kvm_ioctls::VcpuFd;
use nix::unistd::{Pid, gettid};

use super::{
    events::{MachineEvent, Notify},
    exits::{Buses, Exit, handle},
};
use crate::error::{Error, Result};
use crate::host::priority;

/// The signal that takes a vCPU thread out of `KVM_RUN`.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    Quit,
}

/// Where vCPU threads wait.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Mirrors `state.order == Run` for the loop around `KVM_RUN`, which takes no lock.
    running: AtomicBool,
}

#[derive(Debug)]
struct GateState {
    order: Order,
    parked: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to run; false to quit. `stopped`: this vCPU has nothing to run any more.
    fn wait(&self, fd: &Mutex<VcpuFd>, stopped: bool) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.order == Order::Park || (state.order == Order::Run && stopped) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        // Under the gate's lock: a kick that belongs to a later order comes after it.
        lock(fd).set_kvm_immediate_exit(0);
        state.order == Order::Run
    }
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    kick: Kick,
    thread: Option<JoinHandle<()>>,
    /// The thread's number, once it runs.
    tid: Arc<OnceLock<Pid>>,
}

/// All vCPUs of a machine. They are born parked.
#[derive(Debug)]
pub struct Vcpus {
    gate: Arc<Gate>,
    vcpus: Vec<Vcpu>,
}

impl Vcpus {
    /// Starts a thread a vCPU. Each waits for [`Vcpus::run`].
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(fds: Vec<VcpuFd>, buses: &Arc<Buses>, notify: &Notify) -> Result<Self> {
        install_kick_handler()?;
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState { order: Order::Park, parked: 0 }),
            changed: Condvar::new(),
            running: AtomicBool::new(false),
        });
        let mut all = Vcpus { gate, vcpus: Vec::with_capacity(fds.len()) };
        for (id, mut fd) in fds.into_iter().enumerate() {
            let kick = Kick::new(&mut fd);
            let (fd, tid) = (Arc::new(Mutex::new(fd)), Arc::default());
            let thread = VcpuThread {
                id: id as u32,
                fd: Arc::clone(&fd),
                tid: Arc::clone(&tid),
                gate: Arc::clone(&all.gate),
                buses: Arc::clone(buses),
                notify: notify.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || thread.main())
                .map_err(Error::os("starting a vCPU thread"))?;
            all.vcpus.push(Vcpu { fd, kick, thread: Some(thread), tid });
        }
        Ok(all)
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Their threads.
    pub fn threads(&self) -> Vec<Pid> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.tid.get().copied()).collect()
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        self.order(Order::Run);
    }

    /// Stops the vCPUs, with every exit completed, and waits until all have.
    pub fn park(&self) {
        self.order(Order::Park);
        self.kick();
        let mut state = self.gate.lock();
        while state.parked < self.vcpus.len() {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Exclusive use of the parked vCPUs, in order of their numbers.
    pub fn lock(&self) -> Vec<MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| lock(&vcpu.fd)).collect()
    }

    fn order(&self, order: Order) {
        let mut state = self.gate.lock();
        state.order = order;
        self.gate.running.store(order == Order::Run, Ordering::SeqCst);
        drop(state);
        self.gate.changed.notify_all();
    }

    fn kick(&self) {
        for vcpu in &self.vcpus {
            if let Some(thread) = &vcpu.thread {
                vcpu.kick.kick(thread);
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.order(Order::Quit);
        self.kick();
        for thread in self.vcpus.iter_mut().filter_map(|vcpu| vcpu.thread.take()) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

fn lock(fd: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    fd.lock().unwrap_or_else(PoisonError::into_inner)
}

struct VcpuThread {
    id: u32,
    fd: Arc<Mutex<VcpuFd>>,
    tid: Arc<OnceLock<Pid>>,
    gate: Arc<Gate>,
    buses: Arc<Buses>,
    notify: Notify,
}

impl VcpuThread {
    fn main(self) {
        priority::be_usual();
        // Its own, set once.
        let _ = self.tid.set(gettid());
        let mut stopped = false;
        while self.gate.wait(&self.fd, stopped) {
            let mut fd = lock(&self.fd);
            stopped = self.run(&mut fd);
            complete_pending_exit(&mut fd);
        }
    }

    /// Runs the guest until the gate is closed; true if this vCPU has nothing more to run.
    fn run(&self, fd: &mut VcpuFd) -> bool {
        while self.gate.running.load(Ordering::SeqCst) {
            let event = match handle(fd, &self.buses) {
                Exit::Continue => continue,
                Exit::Shutdown => MachineEvent::TripleFault { vcpu: self.id },
                Exit::Unknown(reason) => MachineEvent::GuestError { vcpu: self.id, reason },
            };
            self.notify.send(event);
            return true;
        }
        false
    }
}

/// Takes the answer of the last IN or MMIO read into the vCPU's registers: KVM does that at the *next* `KVM_RUN`, and
/// a state saved before would repeat or lose the access.
fn complete_pending_exit(fd: &mut VcpuFd) {
    fd.set_kvm_immediate_exit(1);
    if let Ok(exit) = fd.run() {
        tracing::error!(?exit, "KVM ran a vCPU that was told to exit at once");
    }
}

/// Reaches into a running vCPU's `kvm_run`.
#[derive(Debug)]
struct Kick {
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is used only for atomic stores of one byte; the mapping lives as long as the `VcpuFd`, which
// `Vcpu` owns beside its `Kick`.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    fn new(fd: &mut VcpuFd) -> Self {
        Kick { immediate_exit: &raw mut fd.get_kvm_run().immediate_exit }
    }

    fn kick(&self, thread: &JoinHandle<()>) {
        // SAFETY: the byte is mapped, see above; the kernel reads it, this process only stores to it.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(1, Ordering::SeqCst);
        // SAFETY: the thread has not been joined, so its handle is valid.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
    }
}

/// A handler that does nothing: the signal is there to interrupt `KVM_RUN`.
fn install_kick_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the structure is plain data, for which zeros are valid; the handler is async-signal-safe.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(Error::os("installing a signal handler")(io::Error::last_os_error())) }
}
