export { branchTarget, divertedTo, mayBranchToItself } from './branch.ts';
export { type Effect, effectOf, type RegisterValues } from './effect.ts';
export { isLegacyPrefix, isRex } from './encodings.ts';
export { afterEndbr, decode, type Instruction, MAX_LENGTH, type ModRm } from './instruction.ts';
