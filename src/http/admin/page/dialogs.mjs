// Dialogs. While one is open the rest of the page is inert, and Escape closes it.

import { button, element } from './dom.mjs';

/** Shows a dialog with a form. Resolves with what `submit` returns, or undefined if it was cancelled. */
function show(title, content, action, submit) {
  return new Promise((resolve) => {
    let result;
    const problem = element('p', { class: 'problem', role: 'alert' });
    const cancel = button('Cancel', () => dialog.close());
    const act = element('button', { type: 'submit', class: 'primary' }, action);
    const form = element('form', {
      submit: async (event) => {
        event.preventDefault();
        act.disabled = true;
        try {
          result = await submit();
          dialog.close();
        } catch (error) {
          problem.textContent = error.message;
        } finally {
          act.disabled = false;
        }
      },
    }, element('h2', { id: 'dialog-title' }, title), ...content, problem, element('div', { class: 'buttons' }, cancel, act));
    const dialog = element('dialog', { 'aria-labelledby': 'dialog-title', close: () => {
      dialog.remove();
      resolve(result);
    } }, form);
    document.body.append(dialog);
    dialog.showModal();
    (dialog.querySelector('[data-first]') ?? cancel).focus();
  });
}

/** Asks for a confirmation, then does something. Resolves with what `act` returns, or undefined if it was cancelled. */
export const confirmed = (title, text, action, act) => show(title, [element('p', {}, text)], action, act);

/** Asks for a message, and calls `send` with its type, its data as JSON text, and whether it is stored. */
export function askForMessage(title, send) {
  const kind = element('input', { id: 'send-type', type: 'text', value: 'TEST', 'data-first': true, autocomplete: 'off' });
  const data = element('textarea', { id: 'send-data', rows: '5', spellcheck: 'false' });
  data.value = '{ "text": "hello" }';
  const stored = element('input', { id: 'send-stored', type: 'checkbox', checked: true });
  const content = [
    element('label', { for: 'send-type' }, 'Type'), kind,
    element('label', { for: 'send-data' }, 'Data (JSON)'), data,
    element('div', { class: 'check' }, stored, element('label', { for: 'send-stored' }, 'Store it until the user has received it')),
  ];
  return show(title, content, 'Send', () => {
    try {
      JSON.parse(data.value);
    } catch (error) {
      data.focus();
      throw new Error(`The data is not JSON: ${error.message}`);
    }
    return send(kind.value, data.value, stored.checked);
  });
}
