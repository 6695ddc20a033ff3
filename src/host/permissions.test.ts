import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { DIALECTS } from '../wire/index.ts';
import { Permissions } from './permissions.ts';

for (const dialect of Object.values(DIALECTS)) {
  describe(`permissions of a tool that speaks ${dialect.name}`, () => {
    const id = (name: 'GET_VERSION' | 'VM_CHECK_COMMAND' | 'VM_CHECK_EVENT' | 'VM_GET_INFO') =>
      dialect.command(name)!.id;
    const always = [id('GET_VERSION'), id('VM_CHECK_COMMAND'), id('VM_CHECK_EVENT')];

    test('after a hook only three commands are allowed, and no event', () => {
      const permissions = new Permissions(dialect);
      const commands = dialect.commands.filter((command) => permissions.commandAllowed(command.id));
      assert.deepEqual(
        commands.map((command) => command.id),
        always,
      );
      assert.ok(dialect.events.every((event) => !permissions.eventAllowed(event.id)));
    });

    test('everything at once, and back', () => {
      const permissions = new Permissions(dialect);
      permissions.allowCommand(-1, true);
      permissions.allowEvent(-1, true);
      assert.ok(dialect.commands.every((command) => permissions.commandAllowed(command.id)));
      assert.ok(dialect.events.every((event) => permissions.eventAllowed(event.id)));
      permissions.allowCommand(-1, false);
      permissions.allowEvent(-1, false);
      assert.deepEqual(
        dialect.commands
          .filter((command) => permissions.commandAllowed(command.id))
          .map((command) => command.id),
        always,
      );
      assert.ok(dialect.events.every((event) => !permissions.eventAllowed(event.id)));
    });

    test('one command at a time; the three cannot be taken away', () => {
      const permissions = new Permissions(dialect);
      assert.equal(permissions.allowCommand(id('VM_GET_INFO'), true), 0);
      assert.equal(permissions.commandAllowed(id('VM_GET_INFO')), true);
      assert.equal(permissions.allowCommand(id('VM_GET_INFO'), false), 0);
      assert.equal(permissions.commandAllowed(id('VM_GET_INFO')), false);
      for (const command of always) {
        assert.equal(permissions.allowCommand(command, false), -1);
        assert.equal(permissions.commandAllowed(command), true);
      }
    });
  });
}
