import { embeddedSubject, lateEmbeddedSubject } from './embedded-subject.ts';
import { conformance } from './suite.ts';

conformance(embeddedSubject(1));
conformance(embeddedSubject(2));
conformance(lateEmbeddedSubject);
