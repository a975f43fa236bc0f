//! The address-space check. For the compiler that runs kernels, `device`, `constant` and `threadgroup` are empty
//! macros. clang can treat them as real address spaces, and then refuses pointers of the wrong one.

use std::process::Command;

use crate::compiler::{self, Mode};
use crate::mlx::MlxBody;
use crate::msl::Msl;
use crate::{Error, shim};

/// The result of a check that found no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The source was checked.
    Passed,
    /// The source was not checked, for this reason.
    Skipped(String),
}

impl Msl {
    /// Checks that no pointer or reference changes its address space, and that `constant` memory is not written. It
    /// also checks that the source is valid C++14, on which Metal 3 is based.
    ///
    /// Needs clang. With another compiler the check is skipped and prints a notice, unless msl-sim is required (see
    /// [`available`](crate::available)).
    ///
    /// **Errors**: [`Error::AddressSpace`] with the compiler's messages; [`Error::NoClang`] if the check is required.
    pub fn check_address_spaces(&self) -> Result<Checked, Error> {
        let compiler = compiler::compiler()?;
        if !compiler.is_clang() {
            let missing = Error::NoClang { found: compiler.version.clone() };
            if compiler::required() {
                return Err(missing);
            }
            eprintln!("NOTICE: {missing}; {} was not checked", self.name);
            return Ok(Checked::Skipped(missing.to_string()));
        }
        let shim = shim::unpack()?;
        let translation = self.translate(compiler, &shim)?;
        let mut command = Command::new(&compiler.program);
        command.args(compiler.flags(Mode::Plain, false));
        // Metal 3 is C++14. Like clang, its compiler accepts some newer syntax with a warning and refuses the rest.
        command.args(["-std=c++14", "-fsyntax-only", "-ferror-limit=0", "-nostdinc++", "-I"]);
        command.arg(shim.checking_headers()).args(["-x", "c++", "-"]);
        match shim::output(&mut command, &self.name, &translation.cpp) {
            Ok(_) => Ok(Checked::Passed),
            Err(Error::Compile { name, diagnostics }) => Err(Error::AddressSpace { name, diagnostics }),
            Err(other) => Err(other),
        }
    }
}

impl MlxBody {
    /// Like [`Msl::check_address_spaces`], for the kernel that MLX generates around the body.
    pub fn check_address_spaces(&self) -> Result<Checked, Error> {
        self.validate()?;
        self.msl().check_address_spaces()
    }
}
