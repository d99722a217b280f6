//! A small typed eBPF assembler.
//!
//! Programs are written in Rust, next to the types that key their maps, and assembled at start-up: no compiler,
//! no object files, no libbpf. Encoding after the kernel's `Documentation/bpf/standardization/instruction-set.rst`
//! (RFC 9669).
//!
//! Mistakes (a label bound twice or never, a jump that is too long) are collected and told by
//! [`Assembler::finish`], so that programs read as plain lists.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel takes no program longer than this (`BPF_COMPLEXITY_LIMIT_INSNS`).
pub const MAX_INSTRUCTIONS: usize = 1_000_000;

/// A register. Calls return in `R0`, take `R1` to `R5` and spoil them, and keep `R6` to `R9`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Register {
    /// Return value.
    R0 = 0,
    /// First argument; the context, on entry.
    R1,
    /// Second argument.
    R2,
    /// Third argument.
    R3,
    /// Fourth argument.
    R4,
    /// Fifth argument.
    R5,
    /// Kept by calls.
    R6,
    /// Kept by calls.
    R7,
    /// Kept by calls.
    R8,
    /// Kept by calls.
    R9,
    /// The end of the stack, which grows down to 512 bytes below. Read-only.
    R10,
}

/// How many bytes a load or a store moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Size {
    /// 4 bytes
    Word = 0x00,
    /// 2 bytes
    Half = 0x08,
    /// 1 byte
    Byte = 0x10,
    /// 8 bytes
    Double = 0x18,
}

/// Arithmetic: `destination = destination OP operand`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Operation {
    /// `+`
    Add = 0x00,
    /// `-`
    Subtract = 0x10,
    /// `*`
    Multiply = 0x20,
    /// `/`, unsigned; by zero gives 0
    Divide = 0x30,
    /// `|`
    Or = 0x40,
    /// `&`
    And = 0x50,
    /// `<<`
    ShiftLeft = 0x60,
    /// `>>`, filling with zeros
    ShiftRight = 0x70,
    /// `%`, unsigned
    Modulo = 0x90,
    /// `^`
    Xor = 0xa0,
    /// `=`
    Move = 0xb0,
    /// `>>`, filling with the sign
    ShiftRightSigned = 0xc0,
}

/// When a conditional jump is taken: `register CONDITION operand`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Condition {
    /// `==`
    Equal = 0x10,
    /// `>`, unsigned
    Greater = 0x20,
    /// `>=`, unsigned
    GreaterOrEqual = 0x30,
    /// Some bit is set in both.
    AnyBitOf = 0x40,
    /// `!=`
    NotEqual = 0x50,
    /// `>`, signed
    GreaterSigned = 0x60,
    /// `>=`, signed
    GreaterOrEqualSigned = 0x70,
    /// `<`, unsigned
    Less = 0xa0,
    /// `<=`, unsigned
    LessOrEqual = 0xb0,
    /// `<`, signed
    LessSigned = 0xc0,
    /// `<=`, signed
    LessOrEqualSigned = 0xd0,
}

/// The right-hand side of arithmetic and comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// A constant; extended with its sign where the operation is on 64 bits.
    Constant(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(constant: i32) -> Self {
        Self::Constant(constant)
    }
}

/// One instruction, as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, constant: i32) -> Self {
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self { code, registers, offset, constant }
    }
}

// Instruction classes and modes.
const CLASS_LOAD_IMMEDIATE_64: u8 = 0x18;
const CLASS_LOAD: u8 = 0x61;
const CLASS_STORE_CONSTANT: u8 = 0x62;
const CLASS_STORE: u8 = 0x63;
const CLASS_ALU32: u8 = 0x04;
const CLASS_ALU64: u8 = 0x07;
const CLASS_JUMP: u8 = 0x05;
const OPERAND_IS_REGISTER: u8 = 0x08;
const CODE_CALL: u8 = 0x85;
const CODE_EXIT: u8 = 0x95;
/// Source "register" of a 64-bit load that says: the constant is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// Says that a constant is the address of an array's values (BPF_PSEUDO_MAP_VALUE).
const PSEUDO_MAP_VALUE: u8 = 2;

/// A place in the program, made by [`Assembler::label`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(usize);

/// A program that does not assemble: an error in the program's source.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssemblyError {
    /// A jump goes to a label that was never bound, or that is another assembler's.
    #[error("label '{0}' is jumped to but nowhere bound")]
    UnknownLabel(&'static str),
    /// A label was bound a second time.
    #[error("label '{0}' is bound twice")]
    DuplicateLabel(&'static str),
    /// A jump is longer than its 16 bits can say.
    #[error("the jump to label '{label}' is too long ({distance} instructions)")]
    JumpTooLong {
        /// Where to.
        label: &'static str,
        /// How far, in instructions.
        distance: i64,
    },
    /// More than [`MAX_INSTRUCTIONS`].
    #[error("the program is too long ({0} instructions)")]
    ProgramTooLong(usize),
}

/// A program ready for loading. Borrows the maps that it names, whose descriptors are in it.
#[derive(Clone, Debug)]
pub struct Code<'maps> {
    instructions: Vec<Instruction>,
    maps: PhantomData<BorrowedFd<'maps>>,
}

impl Code<'_> {
    /// The instructions; 64-bit constants take two.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }
}

#[derive(Debug)]
struct LabelState {
    name: &'static str,
    bound_at: Option<usize>,
}

/// Collects instructions and labels into a [`Code`].
#[derive(Debug, Default)]
pub struct Assembler<'maps> {
    instructions: Vec<Instruction>,
    labels: Vec<LabelState>,
    /// Instruction, and the label that it jumps to.
    jumps: Vec<(usize, Label)>,
    duplicate: Option<&'static str>,
    maps: PhantomData<BorrowedFd<'maps>>,
}

impl<'maps> Assembler<'maps> {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new place, to be bound once. The name is for error messages only.
    pub fn label(&mut self, name: &'static str) -> Label {
        self.labels.push(LabelState { name, bound_at: None });
        Label(self.labels.len() - 1)
    }

    /// Puts `label` before the next instruction.
    pub fn bind(&mut self, label: Label) {
        let here = self.instructions.len();
        match self.labels.get_mut(label.0) {
            Some(state) if state.bound_at.is_none() => state.bound_at = Some(here),
            Some(state) => self.duplicate = self.duplicate.or(Some(state.name)),
            // A foreign label: told as unknown where it is jumped to, without effect where it is not.
            None => {}
        }
    }

    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, constant: i32) {
        self.instructions.push(Instruction::new(code, destination, source, offset, constant));
    }

    fn push_with_operand(&mut self, code: u8, register: Register, operand: Operand) {
        match operand {
            Operand::Register(source) => {
                self.push(code | OPERAND_IS_REGISTER, register as u8, source as u8, 0, 0);
            }
            Operand::Constant(constant) => self.push(code, register as u8, 0, 0, constant),
        }
    }

    /// 64-bit arithmetic.
    pub fn alu(&mut self, operation: Operation, destination: Register, operand: impl Into<Operand>) {
        self.push_with_operand(CLASS_ALU64 | operation as u8, destination, operand.into());
    }

    /// 32-bit arithmetic; clears the upper half of `destination`.
    pub fn alu32(&mut self, operation: Operation, destination: Register, operand: impl Into<Operand>) {
        self.push_with_operand(CLASS_ALU32 | operation as u8, destination, operand.into());
    }

    /// `destination = operand`, 64 bits.
    pub fn set(&mut self, destination: Register, operand: impl Into<Operand>) {
        self.alu(Operation::Move, destination, operand);
    }

    /// `destination = constant`, 64 bits.
    pub fn load_constant(&mut self, destination: Register, constant: u64) {
        self.push_wide(destination, 0, constant as u32 as i32, (constant >> 32) as u32 as i32);
    }

    /// `destination = map`.
    pub fn load_map(&mut self, destination: Register, map: BorrowedFd<'maps>) {
        self.push_wide(destination, PSEUDO_MAP_FD, map.as_raw_fd(), 0);
    }

    /// `destination = ` the address of the value of `array`, which is an array of one entry.
    pub fn load_value_address(&mut self, destination: Register, array: BorrowedFd<'maps>) {
        self.push_wide(destination, PSEUDO_MAP_VALUE, array.as_raw_fd(), 0);
    }

    fn push_wide(&mut self, destination: Register, source: u8, low: i32, high: i32) {
        self.push(CLASS_LOAD_IMMEDIATE_64, destination as u8, source, 0, low);
        self.push(0, 0, 0, 0, high);
    }

    /// `destination = *(size *)(base + offset)`
    pub fn load(&mut self, size: Size, destination: Register, base: Register, offset: i16) {
        self.push(CLASS_LOAD | size as u8, destination as u8, base as u8, offset, 0);
    }

    /// `*(size *)(base + offset) = source`
    pub fn store(&mut self, size: Size, base: Register, offset: i16, source: Register) {
        self.push(CLASS_STORE | size as u8, base as u8, source as u8, offset, 0);
    }

    /// `*(size *)(base + offset) = constant`
    pub fn store_constant(&mut self, size: Size, base: Register, offset: i16, constant: i32) {
        self.push(CLASS_STORE_CONSTANT | size as u8, base as u8, 0, offset, constant);
    }

    /// Goes on at `label`.
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(CLASS_JUMP, 0, 0, 0, 0);
    }

    /// Goes on at `label` if `register CONDITION operand`, compared on 64 bits.
    pub fn jump_if(
        &mut self,
        register: Register,
        condition: Condition,
        operand: impl Into<Operand>,
        label: Label,
    ) {
        self.jumps.push((self.instructions.len(), label));
        self.push_with_operand(CLASS_JUMP | condition as u8, register, operand.into());
    }

    /// Calls the kernel's helper of this number.
    pub fn call(&mut self, helper: i32) {
        self.push(CODE_CALL, 0, 0, 0, helper);
    }

    /// Ends the program with `R0` as its result.
    pub fn exit(&mut self) {
        self.push(CODE_EXIT, 0, 0, 0, 0);
    }

    /// Resolves the jumps.
    ///
    /// # Errors
    /// Labels bound twice or not at all, jumps over 16 bits, too many instructions.
    pub fn finish(mut self) -> Result<Code<'maps>, AssemblyError> {
        if let Some(name) = self.duplicate {
            return Err(AssemblyError::DuplicateLabel(name));
        }
        if self.instructions.len() > MAX_INSTRUCTIONS {
            return Err(AssemblyError::ProgramTooLong(self.instructions.len()));
        }
        for &(at, label) in &self.jumps {
            let state =
                self.labels.get(label.0).ok_or(AssemblyError::UnknownLabel("of another assembler"))?;
            let target = state.bound_at.ok_or(AssemblyError::UnknownLabel(state.name))?;
            // Counted from the instruction after the jump. Both are at most MAX_INSTRUCTIONS.
            let distance = target as i64 - (at as i64 + 1);
            self.instructions[at].offset = i16::try_from(distance)
                .map_err(|_| AssemblyError::JumpTooLong { label: state.name, distance })?;
        }
        Ok(Code { instructions: self.instructions, maps: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::Register::*;
    use super::*;

    /// Each instruction's bytes, read as one number from left to right.
    #[cfg(target_endian = "little")]
    fn bytes(code: &Code<'_>) -> Vec<u64> {
        code.instructions()
            .iter()
            .map(|instruction| {
                let mut bytes = [instruction.code, instruction.registers, 0, 0, 0, 0, 0, 0];
                bytes[2..4].copy_from_slice(&instruction.offset.to_le_bytes());
                bytes[4..].copy_from_slice(&instruction.constant.to_le_bytes());
                u64::from_be_bytes(bytes)
            })
            .collect()
    }

    #[cfg(target_endian = "little")]
    fn check(text: &str, expected: &[u64], write: impl FnOnce(&mut Assembler<'_>)) {
        let mut asm = Assembler::new();
        write(&mut asm);
        assert_eq!(bytes(&asm.finish().unwrap()), expected, "{text}");
    }

    /// Expected bytes: `llvm-mc -triple bpfel --show-encoding` on the text.
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_llvm_does() {
        use Operation::*;
        check("r0 = 1", &[0xb700_0000_0100_0000], |asm| asm.set(R0, 1));
        check("r6 = r1", &[0xbf16_0000_0000_0000], |asm| asm.set(R6, R1));
        check("r0 = -1", &[0xb700_0000_ffff_ffff], |asm| asm.set(R0, -1));
        check("w3 = w4", &[0xbc43_0000_0000_0000], |asm| asm.alu32(Move, R3, R4));
        check("r2 += -20", &[0x0702_0000_ecff_ffff], |asm| asm.alu(Add, R2, -20));
        check("r7 += r1", &[0x0f17_0000_0000_0000], |asm| asm.alu(Add, R7, R1));
        check("r1 -= r2", &[0x1f21_0000_0000_0000], |asm| asm.alu(Subtract, R1, R2));
        check("r1 *= 3", &[0x2701_0000_0300_0000], |asm| asm.alu(Multiply, R1, 3));
        check("r1 /= 3", &[0x3701_0000_0300_0000], |asm| asm.alu(Divide, R1, 3));
        check("r1 |= r9", &[0x4f91_0000_0000_0000], |asm| asm.alu(Or, R1, R9));
        check("r1 &= 15", &[0x5701_0000_0f00_0000], |asm| asm.alu(And, R1, 15));
        check("r1 <<= 2", &[0x6701_0000_0200_0000], |asm| asm.alu(ShiftLeft, R1, 2));
        check("r1 >>= 4", &[0x7701_0000_0400_0000], |asm| asm.alu(ShiftRight, R1, 4));
        check("w1 >>= 4", &[0x7401_0000_0400_0000], |asm| asm.alu32(ShiftRight, R1, 4));
        check("r1 ^= r1", &[0xaf11_0000_0000_0000], |asm| asm.alu(Xor, R1, R1));
        check("r1 s>>= 32", &[0xc701_0000_2000_0000], |asm| asm.alu(ShiftRightSigned, R1, 32));
        check("r2 = *(u32 *)(r6 + 16)", &[0x6162_1000_0000_0000], |asm| asm.load(Size::Word, R2, R6, 16));
        check("r8 = *(u16 *)(r10 - 52)", &[0x69a8_ccff_0000_0000], |asm| asm.load(Size::Half, R8, R10, -52));
        check("r1 = *(u8 *)(r10 - 64)", &[0x71a1_c0ff_0000_0000], |asm| asm.load(Size::Byte, R1, R10, -64));
        check("r1 = *(u64 *)(r10 - 40)", &[0x79a1_d8ff_0000_0000], |asm| {
            asm.load(Size::Double, R1, R10, -40)
        });
        check("*(u64 *)(r10 - 16) = r1", &[0x7b1a_f0ff_0000_0000], |asm| {
            asm.store(Size::Double, R10, -16, R1)
        });
        check("*(u8 *)(r10 - 19) = r8", &[0x738a_edff_0000_0000], |asm| asm.store(Size::Byte, R10, -19, R8));
        check("r1 = 1311768467463790320 ll", &[0x1801_0000_f0de_bc9a, 0x0000_0000_7856_3412], |asm| {
            asm.load_constant(R1, 0x1234_5678_9abc_def0)
        });
        check("call 189", &[0x8500_0000_bd00_0000], |asm| asm.call(189));
        check("exit", &[0x9500_0000_0000_0000], |asm| asm.exit());
        // LLVM 14 writes neither of these two; by hand from the specification.
        check("*(u32 *)(r10 - 20) = 4", &[0x620a_ecff_0400_0000], |asm| {
            asm.store_constant(Size::Word, R10, -20, 4)
        });
        check("r1 %= 3", &[0x9701_0000_0300_0000], |asm| asm.alu(Modulo, R1, 3));
    }

    /// Codes as above, of `if r8 OP 6 goto +5`; `AnyBitOf`, which LLVM 14 cannot write, from the specification.
    #[test]
    fn conditions_are_encoded_as_llvm_does() {
        let rows = [
            (Condition::Equal, 0x15),
            (Condition::NotEqual, 0x55),
            (Condition::Greater, 0x25),
            (Condition::GreaterOrEqual, 0x35),
            (Condition::Less, 0xa5),
            (Condition::LessOrEqual, 0xb5),
            (Condition::GreaterSigned, 0x65),
            (Condition::GreaterOrEqualSigned, 0x75),
            (Condition::LessSigned, 0xc5),
            (Condition::LessOrEqualSigned, 0xd5),
            (Condition::AnyBitOf, 0x45),
        ];
        for (condition, code) in rows {
            for (operand, register, constant) in [(Operand::from(6), 0, 6), (Operand::from(R9), 9, 0)] {
                let mut asm = Assembler::new();
                let there = asm.label("there");
                asm.jump_if(R8, condition, operand, there);
                asm.bind(there);
                let by_register = if register == 0 { 0 } else { 0x08 };
                let expected = Instruction::new(code | by_register, 8, register, 0, constant);
                assert_eq!(asm.finish().unwrap().instructions(), [expected], "{condition:?} {operand:?}");
            }
        }
    }

    #[test]
    fn a_map_is_named_by_its_descriptor() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut asm = Assembler::new();
        asm.load_map(R1, file.as_fd());
        asm.load_value_address(R2, file.as_fd());
        let code = asm.finish().unwrap();
        assert_eq!(code.instructions()[0], Instruction::new(0x18, 1, 1, 0, file.as_fd().as_raw_fd()));
        assert_eq!(code.instructions()[1], Instruction::new(0, 0, 0, 0, 0));
        assert_eq!(code.instructions()[2], Instruction::new(0x18, 2, 2, 0, file.as_fd().as_raw_fd()));
    }

    #[test]
    fn jumps_reach_forwards_and_backwards() {
        let mut asm = Assembler::new();
        let (again, done) = (asm.label("again"), asm.label("done"));
        asm.bind(again);
        asm.jump_if(R1, Condition::Equal, 0, done);
        asm.load_constant(R2, 1);
        asm.jump(again);
        asm.bind(done);
        asm.exit();
        let offsets: Vec<i16> = asm.finish().unwrap().instructions().iter().map(|i| i.offset).collect();
        assert_eq!(offsets, [3, 0, 0, -4, 0]);
    }

    #[test]
    fn bad_labels_are_told() {
        let mut asm = Assembler::new();
        let label = asm.label("nowhere");
        asm.jump(label);
        assert_eq!(asm.finish().unwrap_err(), AssemblyError::UnknownLabel("nowhere"));

        let mut asm = Assembler::new();
        let label = asm.label("twice");
        asm.bind(label);
        asm.exit();
        asm.bind(label);
        assert_eq!(asm.finish().unwrap_err(), AssemblyError::DuplicateLabel("twice"));

        let mut asm = Assembler::new();
        let foreign = Label(7);
        asm.bind(foreign);
        asm.jump(foreign);
        assert!(matches!(asm.finish().unwrap_err(), AssemblyError::UnknownLabel(_)));
    }

    #[test]
    fn jumps_are_at_most_sixteen_bits_long() {
        for (between, fits) in [(32_767, true), (32_768, false)] {
            let mut asm = Assembler::new();
            let far = asm.label("far");
            asm.jump(far);
            for _ in 0..between {
                asm.set(R0, 0);
            }
            asm.bind(far);
            asm.exit();
            assert_eq!(asm.finish().is_ok(), fits, "{between}");
        }
        let mut asm = Assembler::new();
        let back = asm.label("back");
        asm.bind(back);
        for _ in 0..32_768 {
            asm.set(R0, 0);
        }
        asm.jump(back);
        let error = asm.finish().unwrap_err();
        assert_eq!(error, AssemblyError::JumpTooLong { label: "back", distance: -32_769 });
    }

    #[test]
    fn programs_have_a_longest_length() {
        let mut asm = Assembler::new();
        for _ in 0..=MAX_INSTRUCTIONS {
            asm.exit();
        }
        assert_eq!(asm.finish().unwrap_err(), AssemblyError::ProgramTooLong(MAX_INSTRUCTIONS + 1));
    }
}
