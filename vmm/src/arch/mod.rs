//! What is particular to x86-64: the address map, ACPI tables, CPUID, and the state at the kernel's entry.

pub mod acpi;
pub mod boot_cpu;
pub mod cpuid;
pub mod layout;
