import { kvmSubject } from './kvm-subject.ts';
import { conformance } from './suite.ts';

conformance(kvmSubject(1));
conformance(kvmSubject(2));
conformance(kvmSubject(1, true));
conformance(kvmSubject(2, true));
